"""Type hints with bounds, for the arguments a config can set: checked before anything is built."""

from typing import Annotated

from annotated_types import Ge, Gt, Lt

PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Lt(1)]
