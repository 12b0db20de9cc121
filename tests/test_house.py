"""The laws of the house, for our packages; the drawing in docs/explanation/architecture.md is their text.

That they are laws, which find what breaks them: tests/smp_bridge/test_house.py.
"""

from collections.abc import Callable
from pathlib import Path

import house
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=house.PACKAGES)
def package(request: pytest.FixtureRequest) -> Path:
    return ROOT / str(request.param)


def test_the_drawing_is_of_our_packages() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/py.typed")}
    assert house.PACKAGES.keys() == packages
    assert all(house.drawing(name) for name in packages)


def test_none_imports_what_it_may_not_of_the_others(package: Path) -> None:
    assert house.foreign(package) == []


def test_nothing_goes_in_circles(package: Path) -> None:
    assert house.circles(package) == []


def test_what_stands_lower_imports_what_stands_above_it(package: Path) -> None:
    assert house.climbs(package, house.drawing(package.name)) == []


def test_each_module_is_in_the_drawing_and_each_name_in_it_is_a_module(package: Path) -> None:
    assert house.misplaced(package, house.drawing(package.name)) == []


def test_nothing_is_too_long(package: Path) -> None:
    assert house.too_long(package) == []


@pytest.mark.parametrize("law", [house.untested, house.untried])
def test_each_module_has_its_tests(package: Path, law: Callable[[Path, Path], list[str]]) -> None:
    assert law(package, ROOT / "tests" / package.name) == []
