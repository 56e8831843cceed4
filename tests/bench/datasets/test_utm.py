"""The projection is that of published values, and of the definition: conformal, and true on the central meridian."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from bench.datasets.utm import (
    AXIS,
    FLATTENING,
    SCALE,
    band_of,
    on_earth,
    project,
    unproject,
    zone_of,
)

SQUARED = FLATTENING * (2 - FLATTENING)  # eccentricity
latitudes = st.floats(-80, 84)
degrees = st.floats(-180, 179.999)
MILLIMETRE = 1e-3


def one(latitude: float, longitude: float, zone: int, north: bool = True) -> tuple[float, float]:
    east, up = project(np.array([latitude]), np.array([longitude]), zone, north)[0]
    return float(east), float(up)


@pytest.mark.parametrize(
    ("place", "zone", "expected"),
    [
        ((51.2, 7.5), 32, (395201.310, 5673135.241)),  # README of the package utm
        ((0.0, 6.0), 31, (833978.557, 0.0)),  # where zones meet on the equator
        ((0.0, 0.0), 31, (166021.443, 0.0)),
        ((84.0, 0.0), 31, (465005.345, 9329005.183)),  # the north-western corner of EPSG:32631
    ],
)
def test_published_places_are_where_they_are_to_a_millimetre(
    place: tuple[float, float], zone: int, expected: tuple[float, float]
) -> None:
    assert one(*place, zone) == pytest.approx(expected, abs=MILLIMETRE)


def test_the_south_counts_from_ten_million_metres() -> None:
    east, up = one(-33.8568, 151.2153, 56, False)
    mirrored = one(33.8568, 151.2153, 56)
    assert east == mirrored[0] and up == pytest.approx(10_000_000 - mirrored[1], abs=1e-9)


@pytest.mark.parametrize("latitude", [-79.5, -33.9, -1e-6, 0.0, 12.5, 48.8582, 71.3, 84.0])
def test_on_the_central_meridian_north_is_the_length_of_the_meridian(latitude: float) -> None:
    def step(up: float) -> float:
        return AXIS * (1 - SQUARED) / (1 - SQUARED * math.sin(up) ** 2) ** 1.5

    length, _ = quad(step, 0, math.radians(latitude), epsabs=1e-7, epsrel=1e-13)
    assert one(latitude, 9.0, 32) == pytest.approx((500_000, SCALE * length), abs=1e-5)


@given(st.floats(-79, 83), st.floats(-6, 6))
def test_angles_are_kept(latitude: float, turned: float) -> None:
    """A small step north and one as long east, on the ellipsoid, are two steps of one length and at a right angle."""
    small, up = 1e-5, math.radians(latitude)
    narrow = math.sqrt(1 - SQUARED * math.sin(up) ** 2)
    meridian, parallel = AXIS * (1 - SQUARED) / narrow**3, AXIS * math.cos(up) / narrow  # metres a radian

    def at(north: float, east: float) -> np.ndarray:
        there = np.degrees([up + north / meridian, math.radians(9 + turned) + east / parallel])
        return np.array(one(*there, 32))

    step = small * AXIS
    to_north, to_east = (at(step, 0) - at(-step, 0)) / 2, (at(0, step) - at(0, -step)) / 2
    assert to_north @ to_east == pytest.approx(0, abs=1e-6 * step**2)
    assert np.linalg.norm(to_north) == pytest.approx(np.linalg.norm(to_east), rel=1e-6)


@given(latitudes, st.floats(-9, 9), st.integers(1, 60), st.booleans())
def test_there_and_back_is_the_same_place(latitude: float, turned: float, zone: int, north: bool) -> None:
    longitude = (6 * zone - 183 + turned + 180) % 360 - 180
    found = unproject(project(np.array([latitude]), np.array([longitude]), zone, north), zone, north)
    moved = on_earth(*found) - on_earth(np.array([latitude]), np.array([longitude]))
    assert np.linalg.norm(moved) < 1e-5


@pytest.mark.parametrize(
    ("place", "zone"),
    [
        ((0, -180), 1),
        ((0, 179.999), 60),
        ((0, 180), 1),
        ((55.999, 3.5), 31),
        ((56, 3), 32),
        ((63.999, 11.999), 32),
        ((60, 2.999), 31),
        ((60, 12), 33),
        ((64, 3.5), 31),
        ((72, 8.999), 31),
        ((72, 9), 33),
        ((80, 20.999), 33),
        ((80, 21), 35),
        ((84, 33), 37),
        ((80, 41.999), 37),
        ((80, 42), 38),
        ((71.999, 9), 32),
        ((-60, 5), 31),
    ],
)
def test_zones_have_their_edges_and_exceptions(place: tuple[float, float], zone: int) -> None:
    assert zone_of(*place) == zone


@given(latitudes, degrees)
def test_every_place_is_within_nine_degrees_of_its_zones_meridian(latitude: float, longitude: float) -> None:
    zone = zone_of(latitude, longitude)
    assert 1 <= zone <= 60
    assert abs((longitude - (6 * zone - 183) + 180) % 360 - 180) <= 9


def test_a_band_outside_utm_is_refused() -> None:
    assert [band_of(latitude) for latitude in (-80, -72.001, -72, 71.999, 72)] == ["C", "C", "D", "W", "X"]
    for latitude in (-80.001, 84.001, float("nan")):
        with pytest.raises(ValueError, match="UTM ends at -80 and 84"):
            band_of(latitude)
