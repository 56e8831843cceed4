"""A method that cannot be loaded: it is listed with this error, and everything else runs."""

import a_package_that_nobody_has  # noqa: F401
