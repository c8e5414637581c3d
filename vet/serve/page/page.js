// The page that tries models. It loads nothing from other hosts. Images go to this server alone.

const COMPARE = ''; // the value of the choice "all models"; no model has an empty name
const MOST = 32; // models that "compare all" asks
const byId = (id) => document.getElementById(id);
const form = byId('form');
const drop = byId('drop');
const status = byId('status');
let asked = []; // the images that were asked about last

start();

async function start() {
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    showModels();
  });
  byId('model').addEventListener('change', () => ask(asked));
  for (const input of [byId('files'), byId('camera')]) {
    input.addEventListener('change', () => {
      ask([...input.files]);
      input.value = '';
    });
  }
  document.addEventListener('paste', (event) => ask([...event.clipboardData.files]));
  document.addEventListener('dragover', (event) => {
    event.preventDefault();
    drop.classList.add('over');
  });
  document.addEventListener('dragleave', (event) => {
    if (!event.relatedTarget) drop.classList.remove('over');
  });
  document.addEventListener('drop', (event) => {
    event.preventDefault();
    drop.classList.remove('over');
    ask([...event.dataTransfer.files]);
  });
  await showModels();
}

async function showModels() {
  try {
    const { models } = await (await call('v1/models')).json();
    const choices = models.map((model) => new Option(model.name, model.name));
    if (models.length > 1) {
      const shown = models.length > MOST ? `the first ${MOST} models` : 'all models';
      choices.push(new Option(`Compare ${shown}`, COMPARE));
    }
    byId('model').replaceChildren(...choices);
    say(models.length === 1 ? '1 model is ready.' : `${models.length} models are ready.`);
  } catch (error) {
    say(error.message, true);
  }
}

// Asks one model, or each model after the other, about each image.
async function ask(files) {
  const images = files.filter((file) => file.type.startsWith('image/') || !file.type);
  if (!images.length) {
    if (files.length) say('This is no image. Choose a photo.', true);
    return;
  }
  asked = images;
  const names = chosen();
  const results = byId('results');
  results.replaceChildren();
  say(`Waiting for the answers for ${count(images.length, 'image')} …`);
  let wrong = 0;
  for (const image of images) {
    const place = showImage(image);
    results.append(place);
    for (const name of names) {
      for (const task of await tasksOf(name)) {
        if (!(await answerOf({ name, task }, image, place.querySelector('.answers')))) wrong += 1;
      }
    }
  }
  const failed = wrong ? ` ${count(wrong, 'answer')} failed.` : '';
  say(`${count(images.length, 'image')}, ${count(names.length, 'model')}: done.${failed}`, wrong > 0);
}

function chosen() {
  const select = byId('model');
  if (select.value !== COMPARE) return [select.value];
  return [...select.options].map((option) => option.value).filter((value) => value !== COMPARE).slice(0, MOST);
}

// The tasks of a model. A model of one task has the task ''.
async function tasksOf(name) {
  try {
    const { tasks } = await (await call(`v1/models/${encodeURIComponent(name)}`)).json();
    return tasks ? Object.keys(tasks) : [''];
  } catch {
    return ['']; // the answer says what is wrong with the model
  }
}

function showImage(image) {
  const article = byId('image-template').content.cloneNode(true).firstElementChild;
  const picture = article.querySelector('img');
  picture.src = URL.createObjectURL(image);
  picture.alt = `your image ${image.name}`;
  picture.addEventListener('load', () => URL.revokeObjectURL(picture.src), { once: true });
  article.querySelector('figcaption').textContent = `${image.name}, ${size(image.size)}`;
  return article;
}

// Shows the answer of a model for one of its tasks. Returns whether there is an answer.
async function answerOf(model, image, place) {
  const section = byId('answer-template').content.cloneNode(true).firstElementChild;
  section.querySelector('h2').textContent = model.task ? `${model.name}: ${model.task}` : model.name;
  section.querySelector('pre').textContent = curl(model, image);
  section.querySelector('.copy').addEventListener('click', () => copy(curl(model, image)));
  section.querySelector('.look').addEventListener('click', () => look(model, image, section));
  place.append(section);
  const began = performance.now();
  try {
    const answer = await (await call('v1/predict', filled('images', model, image))).json();
    const all = Math.round(performance.now() - began);
    section.querySelector('tbody').replaceChildren(...rowsOf(answer.answers[0]));
    section.querySelector('.time').textContent = `${Math.round(1000 * answer.seconds)} ms in the server, ${all} ms in all`;
    return true;
  } catch (error) {
    const text = document.createElement('p');
    text.className = 'wrong';
    text.textContent = error.message;
    section.querySelector('table').replaceWith(text);
    section.querySelector('.look').remove();
    return false;
  }
}

// The rows of a table for an answer: labels with scores, numbers, a vector, or masks.
function rowsOf(answer) {
  if (answer.vector) return [row(`a vector of ${answer.vector.length} numbers`, answer.vector.slice(0, 4).map(short).join(' ') + ' …')];
  if (!answer.labels) return Object.entries(answer).map(([name, value]) => row(name, short(value)));
  if (!answer.labels.length) return [row('no label', '')];
  return answer.labels.slice(0, 5).map((label, i) => {
    const line = row(label, answer.scores[i].toFixed(4));
    line.firstChild.append(answer.masks ? mask(answer.masks[i], label) : bar(answer.scores[i]));
    return line;
  });
}

function row(name, value) {
  const line = document.createElement('tr');
  const head = document.createElement('th');
  head.scope = 'row';
  head.textContent = name;
  const cell = document.createElement('td');
  cell.className = 'number';
  cell.textContent = value;
  line.append(head, cell);
  return line;
}

function bar(score) {
  const meter = document.createElement('meter');
  meter.value = score;
  meter.setAttribute('aria-hidden', 'true'); // the number beside says the same
  return meter;
}

function mask(png, label) {
  const picture = new Image();
  picture.className = 'mask';
  picture.src = `data:image/png;base64,${png}`;
  picture.alt = `the mask of ${label}`;
  return picture;
}

async function look(model, image, section) {
  const place = section.querySelector('.looked');
  place.textContent = 'Waiting for the picture …';
  try {
    const answer = await call('v1/explain', filled('image', model, image));
    const picture = new Image();
    picture.src = URL.createObjectURL(await answer.blob());
    picture.alt = 'Heat over the image: yellow places spoke most for the first answer, dark blue places least.';
    place.replaceChildren(picture);
  } catch (error) {
    place.textContent = error.message;
  }
}

function filled(field, { name, task }, image) {
  const data = new FormData();
  data.append('model', name);
  if (task) data.append('task', task);
  data.append(field, image, image.name);
  return data;
}

// The answer of the server. Throws an Error with the server's words for a refusal.
async function call(path, body) {
  const token = byId('token').value;
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let answer;
  try {
    answer = await fetch(path, body ? { method: 'POST', body, headers } : { headers });
  } catch {
    throw new Error('The server does not answer.');
  }
  if (answer.ok) return answer;
  if (answer.status === 401) {
    byId('token-field').hidden = false;
    throw new Error(token ? 'The server refuses this token.' : 'This server needs a token.');
  }
  const said = await answer.json().catch(() => ({}));
  throw new Error(said.error || `The server answers with ${answer.status}.`);
}

function curl({ name, task }, image) {
  const url = new URL('v1/predict', document.baseURI);
  const token = byId('token').value ? ' -H "Authorization: Bearer $TOKEN"' : '';
  const ofTask = task ? ` --form-string ${quoted(`task=${task}`)}` : '';
  const file = image.name.replace(/["\\]/g, '\\$&'); // within quotes of curl, "," and ";" mean nothing
  return `curl${token} -F ${quoted(`model=${name}`)}${ofTask} -F ${quoted(`images=@"${file}"`)} ${url}`;
}

function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

async function copy(text) {
  await navigator.clipboard.writeText(text);
  say('The request is copied.');
}

function say(text, isWrong = false) {
  status.textContent = text;
  status.classList.toggle('wrong', isWrong);
}

function short(value) {
  return Number(value).toPrecision(4);
}

function count(number, word) {
  return `${number} ${word}${number === 1 ? '' : 's'}`;
}

function size(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
