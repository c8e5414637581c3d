"""The lists of CUB and NABirds: lines without words, and values of several words."""

from vet.datasets.bird_lists import read_bird_lists


def test_lines_of_spaces_say_nothing(tmp_path):
    for name, text in dict(
        classes='1 Black footed Albatross \n \n7 Crow\n\t\n',
        images='1 a/b.jpg\n\n2 c.jpg\n   \n',
        image_class_labels='1 7\n2 1\n \n',
        train_test_split='1 1\n2 1\n  ',
    ).items():
        (tmp_path / f'{name}.txt').write_text(text)
    names, samples = read_bird_lists(tmp_path, 'train')
    assert names == ['Black footed Albatross', 'Crow']
    assert samples == [(tmp_path / 'images/a/b.jpg', 1), (tmp_path / 'images/c.jpg', 0)]
    assert read_bird_lists(tmp_path, 'test')[1] == []
