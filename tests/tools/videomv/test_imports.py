"""The imports of the installed package: only those of own packages are renamed, and what cannot be is refused."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from tools.videomv.contents import package_files
from tools.videomv.imports import ImportFault, own_imports, with_renamed_imports

CASES = {
    "from utils.files import read_json": "from videomv.utils.files import read_json",
    "from utils import registry": "from videomv.utils import registry",
    "import datasets  # noqa: F401": "import videomv.datasets  # noqa: F401",
    "import datasets.zoo.toys": "import videomv.datasets.zoo.toys",
    "import os, models, sys": "import os, videomv.models, sys",
    "import models.lora as lora\nlora.merge()": "import videomv.models.lora as lora\nlora.merge()",
    "if a:\n    from  models.x import (\n  b,\n)": "if a:\n    from  videomv.models.x import (\n  b,\n)",
    "é = 'ü'; from models import x": "é = 'ü'; from videomv.models import x",
    "import inference": "import videomv.inference",
    # not ours, or no import at all
    "import toolshed, utilities": "import toolshed, utilities",
    "from torchvision.utils import make_grid": "from torchvision.utils import make_grid",
    "from . import models": "from . import models",
    '"""from models import x\n"""\nx = "import utils"': '"""from models import x\n"""\nx = "import utils"',
    "models = 1\nprint(models)": "models = 1\nprint(models)",
}


@pytest.mark.parametrize("text", CASES)
def test_own_imports_get_the_prefix_and_nothing_else_changes(text):
    assert with_renamed_imports(text, file="x.py") == CASES[text]
    assert with_renamed_imports(CASES[text], file="x.py") == CASES[text]  # an installed package packs itself


REFUSED = {
    "import models\nmodels.register()": r"x\.py, line 2: models comes from `import models`; write `from models import",
    "import datasets.zoo\nprint(datasets.zoo)": r"x\.py, line 2: datasets comes from",
    "from\\\n    models import x": r"x\.py, line 1: write `from models import` in one line",
    "import importlib\nimportlib.import_module('models.lora')": r"x\.py, line 2: import_module\('models\.lora'\) names",
    "__import__('utils')": r"x\.py, line 1: __import__\('utils'\) names a module in a string",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_would_mean_something_else_is_refused(text):
    with pytest.raises(ImportFault, match=REFUSED[text]):
        with_renamed_imports(text, file="x.py")


def test_every_file_of_the_project_can_be_renamed():
    sources = [one for one in package_files(ROOT) if one.name.endswith(".py")]
    assert {"__init__.py", "__main__.py", "inference.py", "utils/config.py"} <= {one.name for one in sources}
    for one in sources:
        assert own_imports(one.content().decode()) == [], one.name
