import pytest

from vet.datasets.csv import CSV
from vet.errors import DataError, UserError
from vet.registry import DATASETS


@pytest.fixture
def write(tmp_path, paint):
    """write(text) makes lists/list.csv beside four pictures 0.png … 3.png."""
    for number in range(4):
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
        CSV(root, 'valid', file='lists/list.csv')


def test_numbers(write, ids_of):
    root = write('0.png,1\n1.png,0\n2.png,10\n' + ''.join(f'3.png,{number}\n' for number in range(2, 10)))
    data = CSV(root, file='lists/list.csv')
    assert data.classes == [str(number) for number in range(11)]
    assert ids_of(data)[:3] == [(0, 1), (1, 0), (2, 10)]
    named = CSV(write('0.png,2\n', 'part.csv'), file='lists/part.csv', classes=['ant', 'bee', 'cat'])
    assert ids_of(named) == [(0, 2)] and named.classes == ['ant', 'bee', 'cat']


def test_classes_given(write, ids_of):
    root = write('0.png,dog\n')
    assert ids_of(CSV(root, file='lists/list.csv', classes=['cat', 'dog'])) == [(0, 1)]
    with pytest.raises(DataError, match='not among the 2 classes: dog'):
        CSV(root, file='lists/list.csv', classes=['cat', 'cow'])


@pytest.mark.parametrize('text, message', [
    ('', 'no rows'), ('path,label\n', 'no rows'), ('0.png\n', 'line 1 .*no label'),
    ('0.png,a\n,b\n', 'line 2 .*no path'),
    ('0.png,1\n1.png,2\n', r'not 0 … 1.*\[1, 2\]'), ('0.png,a\n9.png,b\n', '1 are missing.*9.png')])
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
