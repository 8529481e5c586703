"""Nothing but the list of fixture plugins; each of them says in its own docstring what it offers."""

import pytest

# The whole package, and before the first import from it: the plugins import one another and their helpers, and an
# assertion in a helper deserves the same explanation as one in a test.
pytest.register_assert_rewrite("tests.fixtures")

pytest_plugins = (
    "tests.fixtures.canary",
    "tests.fixtures.daemon",
    "tests.fixtures.mariadb",
    "tests.fixtures.mysql8",
    "tests.fixtures.ports",
    "tests.fixtures.postgres",
    "tests.fixtures.proxy",
)
