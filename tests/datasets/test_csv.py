import unicodedata

import pytest
from PIL import Image

from vet.datasets.csv import CSV
from vet.errors import DataError, DataWarning, UserError
from vet.registry import DATASETS


@pytest.fixture
def write(tmp_path, paint):
    """write(text) makes lists/list.csv beside pictures 0.png … 10.png."""
    for number in range(11):
        paint(tmp_path / 'lists' / f'{number}.png', number)

    def to(text, name='list.csv'):
        (tmp_path / 'lists' / name).write_text(text, encoding='utf-8')
        return tmp_path

    return to


def test_names(write, ids_of):
    root = write('0.png,dog\n1.png,cat\n\n"2.png" , "small, dog"\n'.replace('" , "', '","'))
    data = DATASETS.build(dict(type='CSV', file='lists/list.csv'), root=root)
    assert data.classes == ['cat', 'dog', 'small, dog']
    assert ids_of(data) == [(0, 1), (1, 0), (2, 2)]
    assert ids_of(CSV(file=root / 'lists/list.csv')) == ids_of(data)


def test_header_in_any_order_and_split(write, ids_of):
    root = write('\ufefflabel,note,path,split\ncat,x,0.png,train\ndog,y,1.png,test\nant,,2.png,val\n')
    assert ids_of(CSV(root, 'train', file='lists/list.csv')) == [(0, 1)]
    assert ids_of(CSV(root, 'eval', file='lists/list.csv')) == [(1, 2)]
    assert ids_of(CSV(root, 'train+val', file='lists/list.csv')) == [(0, 1), (2, 0)]
    assert len(CSV(root, file='lists/list.csv')) == 3
    with pytest.raises(UserError, match='Allowed: test, train'):
        CSV(root, 'extra', file='lists/list.csv')


def test_numbers(write, ids_of):
    root = write(
        '0.png,1\n1.png,0\n2.png,10\n' + ''.join(f'{number + 1}.png,{number}\n' for number in range(2, 10))
    )
    data = CSV(root, file='lists/list.csv')
    assert data.classes == [str(number) for number in range(11)]
    assert ids_of(data)[:3] == [(0, 1), (1, 0), (2, 10)]
    named = CSV(write('0.png,2\n', 'part.csv'), file='lists/part.csv', classes=['ant', 'bee', 'cat'])
    assert ids_of(named) == [(0, 2)] and named.classes == ['ant', 'bee', 'cat']


def test_numbers_that_a_program_wrote_as_floats(write, ids_of):
    def read(text, **options):
        return CSV(write(text), file='lists/list.csv', **options)

    data = read('0.png,1.0\n1.png,0.0\n')
    assert (data.classes, ids_of(data)) == (['0', '1'], [(0, 1), (1, 0)])
    with pytest.warns(DataWarning, match='are numbers, such as 1.5, and count as 2 classes'):
        assert read('0.png,1.0\n1.png,1.5\n').classes == ['1.0', '1.5']
    assert read('0.png,2.0\n1.png,1.0\n', classes=['1.0', '2.0']).targets == [1, 0]
    assert read('0.png,1.0\n', classes=['ant', 'bee']).targets == [1]
    for missing in ('nan', 'NaN', '<NA>'):
        with pytest.raises(DataError, match='line 2 .*a label that is missing'):
            read(f'0.png,1.0\n1.png,{missing}\n')


def test_classes_given(write, ids_of):
    root = write('0.png,dog\n')
    assert ids_of(CSV(root, file='lists/list.csv', classes=['cat', 'dog'])) == [(0, 1)]
    with pytest.raises(DataError, match='not among the 2 classes: dog'):
        CSV(root, file='lists/list.csv', classes=['cat', 'cow'])


@pytest.mark.parametrize(
    'text, message',
    [
        ('', 'no rows'),
        ('path,label\n', 'no rows'),
        ('0.png\n', 'line 1 .*no label'),
        ('0.png,a\n,b\n', 'line 2 .*no path'),
        ('0.png,1\n1.png,2\n', r'not 0 … 1.*\[1, 2\]'),
        ('0.png,a\n90.png,b\n', '1 are missing.*90.png'),
    ],
)
def test_mistakes(write, text, message):
    with pytest.raises(DataError, match=message):
        CSV(write(text), file='lists/list.csv')


def test_more_mistakes(write):
    root = write('0.png,a\n')
    with pytest.raises(UserError, match='no column split'):
        CSV(root, 'train', file='lists/list.csv')
    with pytest.raises(DataError, match='no CSV file'):
        CSV(root, file='gone.csv')
    with pytest.raises(UserError, match="needs 'file'"):
        DATASETS.build(dict(type='CSV'))


@pytest.mark.parametrize(
    'text',
    [
        'path;label\n0.png;cat\n1.png;dog\n',
        '0.png;cat\n1.png;dog\n',
        'path\tlabel\n0.png\tcat\n1.png\tdog\n',
        '0.png\tcat\n1.png\tdog\n',
        'path|label\n0.png|cat\n1.png|dog\n',
        'file_name,label\n0.png,cat\n1.png,dog\n',
        'image,class\n0.png,cat\n1.png,dog\n',
        'Path,Label\n0.png,cat\n1.png,dog\n',
        'filename,category\n0.png,cat\n1.png,dog\n',
        'category,img\ncat,0.png\ndog,1.png\n',
        'Image Path,Class Name\n0.png,cat\n1.png,dog\n',
        ',file,target\n0,0.png,cat\n1,1.png,dog\n',
        'id;breed;class\n0.png;x;cat\n1.png;y;dog\n',
        'image_id,path,label\n7,0.png,cat\n8,1.png,dog\n',
        '"path","label"\r\n"0.png","cat"\r\n"1.png","dog"\r\n',
        'path, label\n0.png, cat\n1.png, dog\n',
        '0.png,cat,1;2\n1.png,dog,3;4\n',
        'path,label\n0.png,cat,\n1.png,dog,\t," "\n',
        '0.png,cat\n1.png,dog,\t\n',
        '\n\n0.png,cat\n\n1.png,dog\n',
        'path,label\r0.png,cat\r1.png,dog\r',
        '.\\0.png,cat\n1.png,dog\n',
        '0.png,cat\n1.png,dog\n1.png,dog\n',
        'file_name,label,text\n0.png,cat,"a, b"\n1.png,dog,"c\nd"\n',
    ],
    ids=repr,
)
def test_tables_as_other_programs_write_them(write, ids_of, text):
    data = CSV(write(text), file='lists/list.csv')
    assert data.classes == ['cat', 'dog'] and sorted(set(ids_of(data))) == [(0, 0), (1, 1)]


@pytest.mark.parametrize(
    'encoding, given',
    [
        ('utf-8', None),
        ('utf-8-sig', None),
        ('utf-16', None),
        ('cp1252', 'cp1252'),
        ('latin-1', 'latin-1'),
        ('utf-16-le', 'utf-16-le'),
        ('shift-jis', 'shift-jis'),
    ],
)
def test_encodings(write, ids_of, encoding, given):
    label = '\u30ab' if encoding == 'shift-jis' else 'caf\u00e9'
    root = write('')
    (root / 'lists/list.csv').write_bytes(f'path,label\n0.png,{label}\n1.png,b\n'.encode(encoding))
    data = CSV(root, file='lists/list.csv', encoding=given)
    assert data.classes == sorted(['b', label]) and len(ids_of(data)) == 2


def test_what_is_not_utf8_is_told_with_its_line(write):
    root = write('')
    (root / 'lists/list.csv').write_bytes('path,label\n0.png,b\n1.png,caf\u00e9\n'.encode('cp1252'))
    with pytest.raises(
        DataError,
        match=r'is not UTF-8: .*\(line 3\). Save the file as UTF-8, or name its encoding, such as encoding="cp1252"',
    ):
        CSV(root, file='lists/list.csv')
    with pytest.raises(UserError, match="encoding is 'utf8000'"):
        CSV(root, file='lists/list.csv', encoding='utf8000')


def test_columns_of_other_names(write, ids_of):
    root = write('bild,art,teil\n0.png,cat,a\n1.png,dog,b\n')
    with pytest.raises(DataError, match="first row of .* is 'bild,art,teil'.*columns=dict.path='bild'"):
        CSV(root, file='lists/list.csv')
    columns = dict(path='bild', label='art', split='Teil')
    assert ids_of(CSV(root, file='lists/list.csv', columns=columns)) == [(0, 0), (1, 1)]
    assert ids_of(CSV(root, 'b', file='lists/list.csv', columns=columns)) == [(1, 1)]
    with pytest.raises(UserError, match="columns is .*, but the header of .* is 'bild,art,teil'"):
        CSV(root, file='lists/list.csv', columns=dict(path='bild', label='klasse'))
    with pytest.raises(UserError, match="unknown key in columns 'pfad'"):
        CSV(root, file='lists/list.csv', columns=dict(pfad='bild'))


@pytest.mark.parametrize(
    'text, message',
    [
        ('path,label,label\n0.png,cat,dog\n', "2 columns 'label'"),
        ('path,label\n0.png,cat\n0.png,dog\n', "gives '0.png' the label 'cat' in line 2 and 'dog' in line 3"),
        ('path,label\n0.png,"cat\n1.png,dog\n', 'cannot be read.*Close every quotation mark'),
        ('path,label\n0.png,cat,dog\n', 'line 2 .* has 3 cells, the first line has 2.*quotation marks'),
        ('0.png,cat\n1.png,dog, young\n', 'line 2 .* has 3 cells, the first line has 2'),
        ('path,label\n0.png,\n', 'line 2 .*no label'),
        ('path,label\n0.png\n', 'line 2 .*no label'),
        ('path\n0.png\n', 'no label'),
        ('\x00\x00', 'is not UTF-8'),
        ('path,label\n0.png,c\x00at\n', 'is not UTF-8: .*utf-16-le'),
        ('path,label\n0.png,cat\n./0.png,dog\n', "gives './0.png' the label 'cat' in line 2 and 'dog'"),
        ('path,label\n0.png,cat\n../lists/0.png,dog\n', "the label 'cat' in line 2 and 'dog' in line 3"),
    ],
)
def test_tables_that_are_refused(write, text, message):
    with pytest.raises(DataError, match=message):
        CSV(write(text), file='lists/list.csv')


def test_a_folder_of_the_datasets_library(tmp_path, paint, ids_of):
    """metadata.csv beside the images, as Hugging Face's imagefolder reads it."""
    for number, split in enumerate(['train', 'validation', 'test']):
        paint(tmp_path / split / 'a.png', number)
        (tmp_path / split / 'metadata.csv').write_text('file_name,label\na.png,cat\n')
    assert [
        ids_of(CSV(tmp_path, file=f'{split}/metadata.csv')) for split in ('train', 'validation', 'test')
    ] == [[(0, 0)], [(1, 0)], [(2, 0)]]


@pytest.mark.parametrize('listed, stored', [('NFC', 'NFD'), ('NFD', 'NFC'), ('NFC', 'NFC')])
def test_names_whose_letters_are_stored_otherwise(tmp_path, paint, ids_of, listed, stored):
    paint(tmp_path / unicodedata.normalize(stored, 'caf\u00e9/\u00e4.png'), 5)
    (tmp_path / 'list.csv').write_text(
        unicodedata.normalize(listed, 'caf\u00e9/\u00e4.png,caf\u00e9\n'), encoding='utf-8'
    )
    data = CSV(tmp_path, file='list.csv')
    assert ids_of(data) == [(5, 0)] and data.classes == ['caf\u00e9']


def test_numbers_are_names_where_the_classes_are_numbers(tmp_path):
    for name, labels in dict(train='012', test='12').items():
        (tmp_path / f'{name}.csv').write_text(
            'path,label\n' + ''.join(f'{name}{label}.png,{label}\n' for label in labels)
        )
        for label in labels:
            Image.new('RGB', (4, 4)).save(tmp_path / f'{name}{label}.png')
    with pytest.raises(DataError, match='labels that are not among the 3 classes: 0'):
        CSV(tmp_path, file='train.csv', classes=['1', '2', '3'])
    assert CSV(tmp_path, file='test.csv', classes=['1', '2', '3']).targets == [0, 1]


@pytest.mark.parametrize('word', ['train', 'TRAIN', 'Train', 'training', 'TRAINING'])
def test_words_for_a_split(tmp_path, word):
    (tmp_path / 'list.csv').write_text(f'path,label,split\na.png,x,{word}\nb.png,y,TEST\n')
    for name in 'ab':
        Image.new('RGB', (4, 4)).save(tmp_path / f'{name}.png')
    assert [len(CSV(tmp_path, file='list.csv', split=split)) for split in ('train', 'test')] == [1, 1]


def test_rows_of_no_known_split_are_told(write, ids_of):
    text = 'path,label,split\n0.png,cat,train\n1.png,dog,trian\n2.png,dog,\n3.png,dog,train\n'
    with pytest.warns(DataWarning, match="2 of the 4 rows .* of no split that vet knows .such as 'trian'"):
        assert ids_of(CSV(write(text), 'train', file='lists/list.csv')) == [(0, 0), (3, 1)]


def test_splits_of_other_words_need_no_warning(write, recwarn):
    text = 'path,label,split\n0.png,cat,fold1\n1.png,dog,fold2\n'
    assert CSV(write(text), 'fold2', file='lists/list.csv').targets == [1]
    assert not recwarn.list


def test_labels_that_look_like_one_are_told(write):
    with pytest.warns(DataWarning, match="'Cat' and 'cat' differ only in case or spaces"):
        assert CSV(write('0.png,cat\n1.png,Cat\n'), file='lists/list.csv').classes == ['Cat', 'cat']


def test_letters_may_differ_in_case(write, recwarn):
    assert CSV(write('0.png,a\n1.png,A\n'), file='lists/list.csv').classes == ['A', 'a']
    assert not recwarn.list


@pytest.mark.parametrize('separator', ['\x0b', '\x85', '\u2028'])
def test_a_line_ends_where_the_table_says(write, separator):
    assert CSV(write(f'0.png,a{separator}b\n1.png,c\n'), file='lists/list.csv').classes == [
        f'a{separator}b',
        'c',
    ]


def test_a_line_with_which_excel_names_the_delimiter(write, ids_of):
    data = CSV(write('sep=;\npath;label\n0.png;cat\n1.png;dog\n'), file='lists/list.csv')
    assert (data.classes, ids_of(data)) == (['cat', 'dog'], [(0, 0), (1, 1)])
