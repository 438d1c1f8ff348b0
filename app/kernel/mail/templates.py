"""Templates of e-mails."""

from collections.abc import Mapping
from pathlib import Path

from jinja2 import DictLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.kernel.settings import PRODUCT
from app.kernel.validation.text import isolated


class Templates:
    """Templates of one module: `name.txt`, whose first line is the subject, and `name.html`, which escapes its data.

    `isolated` is for names of people, `with_article` for that of the `product`, if it is not among the data the one
    that the code has: "an Onehop account".

    All are read when this is made, so make it while the program starts.
    """

    def __init__(self, folder: Path) -> None:
        self._environment = ImmutableSandboxedEnvironment(
            loader=DictLoader({file.name: file.read_text("utf-8") for file in folder.iterdir()}),
            autoescape=lambda name: bool(name) and str(name).endswith(".html"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals["product"] = PRODUCT
        self._environment.filters |= {"with_article": _with_article, "isolated": isolated}

    def render(self, name: str, data: Mapping[str, object]) -> tuple[str, str, str]:
        """Subject, text and HTML."""
        subject, _, text = self._environment.get_template(f"{name}.txt").render(data).partition("\n")
        return subject.strip(), text.strip() + "\n", self._environment.get_template(f"{name}.html").render(data)


def _with_article(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
