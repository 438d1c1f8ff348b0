"""Reads every example of the document, the argument, by the models that datamodel-code-generator makes."""

import json
import sys
from pathlib import Path

import models
from pydantic import BaseModel, TypeAdapter

document = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
read = 0
for name, schema in document["components"]["schemas"].items():
    model = getattr(models, name)
    for example in schema.get("examples", ()):
        value = TypeAdapter(model).validate_json(json.dumps(example))
        assert isinstance(value, BaseModel), name
        read += 1
assert read > 50
