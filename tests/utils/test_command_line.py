"""How scripts start."""

import gc

import pytest

from utils.config import command_line
from utils.errors import UserError


def test_the_garbage_collector_rests_while_modules_are_loaded():
    with command_line._fast_imports():
        assert not gc.isenabled()
        created = [[] for _ in range(2000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    old = {id(one) for one in gc.get_objects(generation=2)}
    assert all(id(one) in old for one in created)
    with pytest.raises(UserError), command_line._fast_imports():
        raise UserError("an error")
    assert gc.isenabled()
