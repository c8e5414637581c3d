"""torch's lists and dicts of modules, with the kind of their modules for type checkers and readers.

When a program runs, these are `nn.ModuleList` and `nn.ModuleDict` themselves.
"""

from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

M = TypeVar('M', bound=nn.Module)

if TYPE_CHECKING:

    class ModuleListOf(nn.ModuleList, Generic[M]):
        def __init__(self, modules: Iterable[M] = ()) -> None: ...

        def __iter__(self) -> Iterator[M]: ...

    class ModuleDictOf(nn.ModuleDict, Generic[M]):
        def __init__(self, modules: Mapping[str, M] = ...) -> None: ...

        def __getitem__(self, key: str) -> M: ...

        def items(self) -> ItemsView[str, M]: ...

        def values(self) -> ValuesView[M]: ...

else:
    ModuleListOf = nn.ModuleList
    ModuleDictOf = nn.ModuleDict
