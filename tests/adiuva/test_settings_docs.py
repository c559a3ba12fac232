"""The settings' documentation is generated from their declaration, which is complete."""

from __future__ import annotations

import re
from itertools import chain

from django.conf import settings

from adiuva.env_variables import SECTIONS
from adiuva.management.commands.settings_docs import files

DECLARED = [variable for section in SECTIONS for variable in section.variables]
PACKAGES = ("adiuva", "agents", "billing", "chat", "integrations", "memory")


def test_env_example_and_the_settings_page_are_as_generated() -> None:
    for path, content in files(settings.BASE_DIR).items():
        assert path.read_text("utf-8") == content, f"{path.name}: run `manage.py settings_docs --write`"


def test_every_variable_that_the_code_names_is_declared_once() -> None:
    names = [variable.name for variable in DECLARED]
    assert len(names) == len(set(names))
    modules = chain.from_iterable((settings.BASE_DIR / package).rglob("*.py") for package in PACKAGES)
    named = {name for path in modules for name in re.findall(r"\bADIUVA_[A-Z_]*[A-Z]\b", path.read_text())}
    assert named <= set(names)


def test_every_default_is_a_value_that_the_variable_accepts() -> None:
    for variable in DECLARED:
        if isinstance(variable.default, int | float) and not isinstance(variable.default, bool):
            assert variable.parse(str(variable.default)) == variable.default
        elif isinstance(variable.default, str) and variable.default:
            assert variable.parse(variable.default) == variable.default
