"""Names that exist: found as whole words, the longest first, and read from a file."""

import pytest

from ka2l_ray.config import ConfigError
from ka2l_ray.decode.grounding import Names, read_names

NAMES = Names.of(["Ada Byron", "Byron", "St. John's", "New York City", "", "U.S."])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Where does Ada Byron live?", "ada byron"),
        ("Where does ADA BYRON, live?", "ada byron"),
        ("Where does Byron live?", "byron"),
        ("Where does Byronic live?", None),
        ("Where does Ada live?", None),
        ("Who founded New York City?", "new york city"),
        ("Who founded New York?", None),
        ("Which church of St. John's is it?", "saint john s"),
        ("Which of the US is it?", "us"),
        ("", None),
    ],
)
def test_the_longest_name_within_a_text(text, name):
    assert NAMES.within(text) == name


def test_no_names_are_in_nothing():
    assert Names.of([]).within("Where does Ada Byron live?") is None


def test_a_file_has_a_name_on_each_line(tmp_path):
    (tmp_path / "names.txt").write_text("\ufeffAda Byron\nBo Stone\n\n", encoding="utf-8")
    assert Names.of(read_names(str(tmp_path / "names.txt"))).names == {"ada byron", "bo stone"}
    with pytest.raises(ConfigError, match=r"decode\.grounding = '.*none\.txt': no such file"):
        read_names(str(tmp_path / "none.txt"))
    (tmp_path / "bad.txt").write_bytes(b"Ada\n\xff\xfe")
    with pytest.raises(ConfigError, match=r"not a text file in UTF-8, one name on each line .* at byte 4"):
        read_names(str(tmp_path / "bad.txt"))
