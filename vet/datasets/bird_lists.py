"""The text files that list the classes, images and splits of CUB-200-2011 and NABirds."""

from pathlib import Path

from vet.datasets.base import Sample


def read_bird_lists(folder: Path, split: str) -> tuple[list[str], list[Sample]]:
    """Class names and samples of split 'train' or 'test'.

    Each line is an id and a value. classes.txt: class id, name. images.txt: image id, path in images/.
    image_class_labels.txt: image id, class id. train_test_split.txt: image id, 1 for train. Labels are 0 …
    K-1 in the order of the class ids that images have. NABirds has gaps in these ids, because its classes.txt
    also names the inner nodes of a hierarchy.
    """
    names, paths, class_ids, is_train = (
        _read_pairs(folder / f'{name}.txt')
        for name in ('classes', 'images', 'image_class_labels', 'train_test_split')
    )
    ids = sorted(set(class_ids.values()), key=int)
    label = {class_id: index for index, class_id in enumerate(ids)}
    wanted = '1' if split == 'train' else '0'
    samples = [
        (folder / 'images' / path, label[class_ids[image]])
        for image, path in paths.items()
        if is_train[image] == wanted
    ]
    return [names[class_id] for class_id in ids], samples


def _read_pairs(file: Path) -> dict[str, str]:
    lines = filter(str.strip, file.read_text(encoding='utf-8').splitlines())
    pairs = dict(line.split(maxsplit=1) for line in lines)
    return {key: value.strip() for key, value in pairs.items()}
