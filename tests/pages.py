"""The pages of the documentation, and the commands in them."""

import re

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))]


def blocks(page, language):
    """Returns the code blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page):
    """Returns the shell commands of a page, without comments, each in one line. Loops are written out."""
    text = "".join(blocks(page, "sh")).replace("\\\n", " ")
    text = re.sub(r"^for (\w+) in (.*); do (.*); done$", _commands_of_loop, text, flags=re.MULTILINE)
    lines = [re.sub(r"\s+# .*|^# .*", "", line) for line in text.splitlines()]
    return [re.sub(r"\s+", " ", part).strip() for line in lines for part in line.split(" && ") if part.strip()]


def _commands_of_loop(loop):
    name, values, command = loop.groups()
    return "\n".join(re.sub(rf"\$({name}\b|{{{name}}})", value, command) for value in values.split())
