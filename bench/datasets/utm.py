"""Universal Transverse Mercator on WGS 84: degrees to metres and back (NGA.SIG.0012, 2014).

The series are Krueger's, to the fourth order of the third flattening (Karney, Journal of Geodesy 2011).
Within 9 degrees of a zone's central meridian they err by less than a hundredth of a millimetre.
"""

from __future__ import annotations

import math

import numpy as np

AXIS, FLATTENING = 6_378_137.0, 1 / 298.257223563  # of WGS 84; metres
SCALE = 0.9996  # on the central meridian
FALSE_EAST, FALSE_NORTH = 500_000.0, 10_000_000.0  # metres; the second south of the equator alone
SOUTHERNMOST, NORTHERNMOST = -80.0, 84.0  # degrees, between which UTM is defined
BANDS = "CDEFGHJKLMNPQRSTUVWXX"  # of 8 degrees of latitude; the last has 12
NORTHERN = "N"  # first letter north of the equator
_N = FLATTENING / (2 - FLATTENING)
_ECCENTRICITY = math.sqrt(FLATTENING * (2 - FLATTENING))
_RADIUS = AXIS / (1 + _N) * (1 + _N**2 / 4 + _N**4 / 64)  # of the circle as long as a meridian
_FORWARD = (
    _N / 2 - 2 * _N**2 / 3 + 5 * _N**3 / 16 + 41 * _N**4 / 180,
    13 * _N**2 / 48 - 3 * _N**3 / 5 + 557 * _N**4 / 1440,
    61 * _N**3 / 240 - 103 * _N**4 / 140,
    49561 * _N**4 / 161280,
)
_INVERSE = (
    _N / 2 - 2 * _N**2 / 3 + 37 * _N**3 / 96 - _N**4 / 360,
    _N**2 / 48 + _N**3 / 15 - 437 * _N**4 / 1440,
    17 * _N**3 / 480 - 37 * _N**4 / 840,
    4397 * _N**4 / 161280,
)
_LATITUDE = (  # of the conformal latitude
    2 * _N - 2 * _N**2 / 3 - 2 * _N**3 + 116 * _N**4 / 45,
    7 * _N**2 / 3 - 8 * _N**3 / 5 - 227 * _N**4 / 45,
    56 * _N**3 / 15 - 136 * _N**4 / 35,
    4279 * _N**4 / 630,
)


def zone_of(latitude: float, longitude: float) -> int:
    """The zone, 1 to 60, of a place in degrees, with the wider zones of Norway and Svalbard.

    >>> zone_of(51.2, 7.5), zone_of(60.4, 5.3), zone_of(78.2, 15.6), zone_of(-33.9, 151.2)
    (32, 32, 33, 56)
    """
    longitude = (longitude + 180) % 360 - 180
    if 56 <= latitude < 64 and 3 <= longitude < 12:
        return 32
    if 72 <= latitude <= NORTHERNMOST and 0 <= longitude < 42:
        return 31 if longitude < 9 else 33 if longitude < 21 else 35 if longitude < 33 else 37
    return int((longitude + 180) // 6) + 1


def band_of(latitude: float) -> str:
    """The letter of a latitude's band, C to X. ValueError beyond 80 degrees south and 84 north.

    >>> band_of(51.2), band_of(-0.1), band_of(0.0), band_of(84.0)
    ('U', 'M', 'N', 'X')
    """
    if not SOUTHERNMOST <= latitude <= NORTHERNMOST:
        raise ValueError(f"latitude {latitude}: UTM ends at {SOUTHERNMOST:g} and {NORTHERNMOST:g} degrees")
    return BANDS[int((latitude - SOUTHERNMOST) // 8)]


def from_central(zone: int, longitude: np.ndarray) -> np.ndarray:
    """Degrees east of the zone's central meridian, -180 to 180."""
    return (np.asarray(longitude, np.float64) - (6 * zone - 183) + 180) % 360 - 180


def project(latitude: np.ndarray, longitude: np.ndarray, zone: int, north: bool) -> np.ndarray:
    """(n, 2) east and north in metres, float64, of places in degrees (n,), on the grid of one zone and hemisphere.

    Places outside the zone, or over the equator, are on the same grid: north may be negative there.

    >>> project(np.array([51.2]), np.array([7.5]), 32, True).round(3).tolist()
    [[395201.31, 5673135.241]]
    """
    sine = np.sin(np.radians(np.asarray(latitude, np.float64)))
    turned = np.radians(from_central(zone, longitude))
    tangent = np.sinh(np.arctanh(sine) - _ECCENTRICITY * np.arctanh(_ECCENTRICITY * sine))  # of conformal latitude
    sphere = np.arctan2(tangent, np.cos(turned)) + 1j * np.arcsinh(np.sin(turned) / np.hypot(tangent, np.cos(turned)))
    plane = sphere + sum(factor * np.sin(2 * j * sphere) for j, factor in enumerate(_FORWARD, 1))
    found = SCALE * _RADIUS * np.stack([plane.imag, plane.real], axis=-1)
    return found + [FALSE_EAST, 0.0 if north else FALSE_NORTH]


def unproject(points: np.ndarray, zone: int, north: bool) -> tuple[np.ndarray, np.ndarray]:
    """(n,) latitudes and (n,) longitudes in degrees of points (n, 2) in metres: what `project` made them from."""
    east, up = (np.asarray(points, np.float64) - [FALSE_EAST, 0.0 if north else FALSE_NORTH]).T / (SCALE * _RADIUS)
    plane = up + 1j * east
    sphere = plane - sum(factor * np.sin(2 * j * plane) for j, factor in enumerate(_INVERSE, 1))
    conformal = np.arcsin(np.clip(np.sin(sphere.real) / np.cosh(sphere.imag), -1, 1))
    latitude = conformal + sum(factor * np.sin(2 * j * conformal) for j, factor in enumerate(_LATITUDE, 1))
    longitude = np.arctan2(np.sinh(sphere.imag), np.cos(sphere.real))
    return np.degrees(latitude), (np.degrees(longitude) + 6 * zone - 183 + 180) % 360 - 180


def on_earth(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """(n, 3) metres from the Earth's centre of places in degrees, at sea level."""
    up, turned = np.radians(latitude), np.radians(longitude)
    curved = AXIS / np.sqrt(1 - (_ECCENTRICITY * np.sin(up)) ** 2)
    return np.stack(
        [
            curved * np.cos(up) * np.cos(turned),
            curved * np.cos(up) * np.sin(turned),
            curved * (1 - _ECCENTRICITY**2) * np.sin(up),
        ],
        axis=-1,
    )
