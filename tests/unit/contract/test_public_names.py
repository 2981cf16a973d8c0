"""The names that `processor.contract` offers, imported when they are asked for."""

from importlib import import_module

import pytest

from processor import contract


def test_every_public_name_is_there_and_is_what_its_module_has() -> None:
    assert sorted(contract._HOMES) == sorted(contract.__all__)
    for name, home in contract._HOMES.items():
        assert getattr(contract, name) is getattr(
            import_module(f"{contract.__name__}.{home}"), name
        )


def test_another_name_is_not() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = contract.nothing
