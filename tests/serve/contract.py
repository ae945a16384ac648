"""Holds answers against the document at ``/openapi.json``, whichever test asked."""

import functools
import json
import re
import urllib.request

import jsonschema


@functools.cache
def document_of(url):
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=120) as response:
        return json.loads(response.read())


def operation_of(document, method, path):
    for template, operations in document["paths"].items():
        if re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), path):
            return operations.get(method.lower())
    return None


def check_answer(url, method, path, answer):
    """Check (status, headers, body): the status is documented, and so are media type, headers and shape of what
    came."""
    status, headers, body = answer
    document = document_of(url)
    operation = operation_of(document, "GET" if method == "HEAD" else method, path.partition("?")[0])
    if operation is None:
        assert status in (401, 403, 404, 405, 200 if method == "OPTIONS" else 404), (method, path, status)
        told = (
            {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
            if status != 200
            else {}
        )
    else:
        assert str(status) in operation["responses"], (method, path, status, body[:200])
        told = operation["responses"][str(status)]
    for name, header in told.get("headers", {}).items():
        assert name in headers or not header.get("required"), (method, path, name)
    if method in ("HEAD", "OPTIONS"):
        return
    content = told.get("content", {})
    media_type = headers.get("Content-Type", "").partition(";")[0]
    assert media_type in content if content else not body, (method, path, media_type)
    if media_type == "application/json":
        validator = jsonschema.Draft202012Validator(
            {**content[media_type]["schema"], "components": document["components"]}
        )
        validator.validate(json.loads(body))
