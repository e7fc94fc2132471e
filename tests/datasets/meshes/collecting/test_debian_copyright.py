"""Debian's copyright files say which licence a file has, and who made it."""

import pytest

from datasets.meshes.collecting.debian_copyright import free_licence, paragraph_of, read_copyright

PAGE = """Format: copyright-format/1.0
Upstream-Name: tiny

Files: *
Copyright: 2001-2008, The Team (<http://example.org>)
License: GPL-3+

Files:
 data/a/*
 data/b.spm
Copyright:
 2008, 2010 Jane Doe <jane@example.org>
 2011 John Doe
License: CC-BY-SA-3.0
Comment: remixed

Files: data/a/special.png
Copyright: nobody
License: CC0

License: GPL-3+
 The text of the licence.
"""


def test_the_last_paragraph_about_a_file_counts():
    paragraphs = read_copyright(PAGE)
    found = {path: paragraph_of(paragraphs, path) for path in ("data/a/x.spm", "data/a/special.png", "data/c")}
    assert [found[path].licence for path in found] == ["CC-BY-SA-3.0", "CC0", "GPL-3+"]
    assert found["data/a/x.spm"].authors == ("Jane Doe", "John Doe")
    assert paragraph_of(paragraphs[1:], "elsewhere") is None


@pytest.mark.parametrize(
    ("names", "licence"),
    [
        (["CC0"], "CC0-1.0"),
        (["CC0", "CC-BY-3.0"], "CC-BY-3.0"),
        (["CC-BY-SA-3.0", "CC-BY-4.0"], "CC-BY-SA-3.0"),
        (["CC-BY-SA-4.0 and CC-BY-SA-3.0"], "CC-BY-SA-4.0"),
        (["CC-BY-SA-3.0 or GPL-3 or GPL-2"], "CC-BY-SA-3.0"),
        (["CC-BY-SA-3.0", "GPL-2"], None),
        (["GPL and CC-BY-SA-3.0"], None),
        (["CC-BY-SA"], None),  # no version is named
        ([], None),
    ],
)
def test_the_strictest_part_decides(names, licence):
    assert free_licence(names) == licence
