"""Handlers called without the framework's machinery around them, which costs more than most of what they do.

FastAPI looks at a route's signature anew for each request: it wraps, stacks, copies and asks many questions whose
answers never change. Here they are asked once, when the program starts, for the signatures that consist of what is
known below. Only valid requests are taken: any other goes to FastAPI untouched, so that FastAPI alone decides how it is
answered, and its declaration remains the only one of a route.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import request_params_to_args
from fastapi.params import Body, Form
from fastapi.routing import APIRoute
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.kernel.errors import AppError, NotFound, PayloadTooLarge
from app.kernel.fairness.threads import FairThreads
from app.kernel.headers.response_head import send_whole
from app.kernel.http.problems import answer_to, problem_response
from app.kernel.http.routing import StrictRoute
from app.kernel.request.state import RequestState, state_of

_GROUP_NAME = re.compile(r"\?P<\w+>")
# So much takes at most about a millisecond and a half to parse. In a thread it takes no longer, but the event loop gets
# its turn in between.
_LONG_BODY = 32 * 1024


class DirectRoutes:
    """Finds a request's route without trying one after the other, and calls its handler; else asks `framework`.

    It begins with the routes of `app` up to the first that is not a `StrictRoute`, because what may match behind one of
    another kind is not known. `fallback_routes` are methods and paths of those whose handlers only FastAPI can call.
    Long bodies are parsed and checked in `threads`.
    """

    def __init__(self, app: FastAPI, framework: ASGIApp, max_body_bytes: int, threads: FairThreads) -> None:
        self._app = app
        self._framework = framework
        self.fallback_routes: set[tuple[str, str]] = set()
        self._static: dict[tuple[str, str], DirectRoute | None] = {}
        self._patterns: dict[str, _Patterns] = {}
        by_method: dict[str, list[StrictRoute]] = {}
        for route in _leading_strict_routes(app.routes):
            for method in route.methods or ():
                by_method.setdefault(method, []).append(route)
        strict = {id(route): route for routes in by_method.values() for route in routes}
        self._known = re.compile("|".join(_unnamed(route.path_regex) for route in strict.values()) or r"(?!)")
        self._others = [route for route in app.routes if id(route) not in strict]
        made: dict[int, DirectRoute | None] = {}
        for method, routes in by_method.items():
            for number, route in enumerate(routes):
                direct = made.setdefault(id(route), DirectRoute.of(route, framework, max_body_bytes, threads))
                if direct is None:
                    self.fallback_routes.add((method, route.path))
                is_hidden = any(earlier.path_regex.match(route.path) for earlier in routes[:number])
                if not route.param_convertors and not is_hidden:
                    self._static[method, route.path] = direct
            self._patterns[method] = _Patterns((route, made[id(route)]) for route in routes if route.param_convertors)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("root_path"):
            await self._framework(scope, receive, send)
            return
        route, parameters = self.find(scope["method"], scope["path"])
        if route is not None:
            scope["app"] = self._app
            scope["path_params"] = parameters
            await route(scope, receive, send)
        elif self._is_unknown_path(scope):
            await problem_response(NotFound())(scope, receive, send)
        else:
            await self._framework(scope, receive, send)

    def find(self, method: str, path: str) -> "tuple[DirectRoute | None, dict[str, str]]":
        """The route and the parameters in its address; None if only the framework can answer."""
        try:
            return self._static[method, path], {}
        except KeyError:
            patterns = self._patterns.get(method)
            return (None, {}) if patterns is None else patterns.find(path)

    def _is_unknown_path(self, scope: Scope) -> bool:
        """Whether no route has this address, whatever the method."""
        if self._known.match(scope["path"]):
            return False
        return all(route.matches(scope)[0] is Match.NONE for route in self._others)


class DirectRoute:
    """One route. `framework` gets what the route cannot answer by itself."""

    def __init__(self, route: StrictRoute, framework: ASGIApp, max_body_bytes: int, threads: FairThreads) -> None:
        """Raises `_NotKnown` where the signature has something that only FastAPI can fill in."""
        self._framework = framework
        self._checks = route.checks
        self._threads = threads
        self._max_body_bytes = (
            min(max_body_bytes, route.checks.limits.max_bytes) if route.checks.body else max_body_bytes
        )
        self._has_body = route.body_field is not None
        self._endpoint = route.endpoint
        self.template = route.path_format
        self._steps = _steps_of(route)

    @classmethod
    def of(
        cls, route: StrictRoute, framework: ASGIApp, max_body_bytes: int, threads: FairThreads
    ) -> "DirectRoute | None":
        try:
            return cls(route, framework, max_body_bytes, threads)
        except _NotKnown:
            return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = state_of(scope)
        state.endpoint = scope["endpoint"] = self._endpoint
        state.route = self.template
        body = _Body(receive, self._max_body_bytes)
        request = Request(scope, body.receive, send)
        try:
            response = await self._answer(state, request, body)
        except (AppError, HTTPException) as error:
            response = answer_to(scope["app"], request, error)
        if response is None:
            await self._framework(scope, body.again, send)
        elif type(response).__call__ is Response.__call__ and response.background is None:
            start = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
            await send_whole(start, bytes(response.body), send)
        else:
            await response(scope, body.receive, send)

    async def _answer(self, state: RequestState, request: Request, body: "_Body") -> Response | None:
        """None: there is something that FastAPI has to look at."""
        self._checks.pass_or_raise(state, request.scope)
        value = None
        is_long = False
        if self._has_body:
            raw = await body.read()
            if not raw:
                return None
            # Starlette looks here when the handler asks for the body once more.
            request._body = raw  # noqa: SLF001 - see above
            self._checks.check_read(state)
            is_long = len(raw) > _LONG_BODY
            if is_long:
                value = await self._threads.run(partial(self._checks.parse, raw))
            else:
                value = self._checks.parse(raw)
            state.parsed_json = value
        # All that can be invalid comes first, because FastAPI must not call a dependency for a second time.
        calls = []
        for step in self._steps:
            if is_long and step.takes_body:
                arguments = await self._threads.run(partial(step.arguments, request, value))
            else:
                arguments = step.arguments(request, value)
            if arguments is None:
                return None
            calls.append((step, arguments))
        results: list[Any] = []
        for step, arguments in calls:
            for name, at in step.results:
                arguments[name] = results[at]
            results.append(await step.function(**arguments))
        response: Response = results[-1]
        return response


class _NotKnown(Exception):
    """A signature has something that only FastAPI can fill in."""


class _Step:
    """One function of a route: a dependency, or at the end the handler. `results` are arguments from earlier steps."""

    def __init__(self, dependant: Dependant, results: Iterable[tuple[str, int]]) -> None:
        function = dependant.call
        if function is None or not _is_coroutine(function) or _has_extras(dependant):
            raise _NotKnown
        self.function: Callable[..., Any] = function
        self.results = tuple(results)
        self._request_name = dependant.request_param_name
        self._path = [(field.name, field.alias, field) for field in dependant.path_params]
        self._query = dependant.query_params
        self._headers = dependant.header_params
        self._body = dependant.body_params[0] if dependant.body_params else None
        self._no_query, errors = request_params_to_args(self._query, QueryParams("")) if self._query else ({}, [])
        self._is_query_needed = bool(errors)
        self.takes_body = self._body is not None
        self._is_plain = not (self._path or self._query or self._headers or self._body)

    def arguments(self, request: Request, body: Any) -> dict[str, Any] | None:
        """What the request itself gives; None if any of it is not valid."""
        found: dict[str, Any] = {} if self._request_name is None else {self._request_name: request}
        if self._is_plain:
            return found
        for name, alias, field in self._path:
            found[name], errors = field.validate(request.scope["path_params"][alias])
            if errors:
                return None
        if self._query and not self._add_query(found, request):
            return None
        if self._headers:
            values, errors = request_params_to_args(self._headers, request.headers)
            if errors:
                return None
            found |= values
        if self._body is not None:
            found[self._body.name], errors = self._body.validate(body)
            if errors:
                return None
        return found

    def _add_query(self, found: dict[str, Any], request: Request) -> bool:
        if not request.scope["query_string"] and not self._is_query_needed:
            # Models of queries are frozen, so the one without any value serves all requests.
            found |= self._no_query
            return True
        values, errors = request_params_to_args(self._query, request.query_params)
        found |= values
        return not errors


class _Patterns:
    """The addresses with parameters, for one method, as one pattern whose alternatives stand in the routes' order."""

    def __init__(self, routes: Iterable[tuple[StrictRoute, DirectRoute | None]]) -> None:
        self._found: dict[int, tuple[DirectRoute | None, Mapping[str, Any], int]] = {}
        parts = []
        group = 1
        for route, direct in routes:
            regex = route.path_regex
            parts.append(f"({_unnamed(regex)})")
            # The outer group of an alternative ends last, so its number is what the match reports.
            is_plain = regex.groups == len(regex.groupindex)
            self._found[group] = direct if is_plain else None, route.param_convertors, group + 1
            group += 1 + regex.groups
        self._regex = re.compile("|".join(parts) or r"(?!)")

    def find(self, path: str) -> tuple[DirectRoute | None, dict[str, Any]]:
        """The route and its parameters."""
        match = self._regex.match(path)
        if match is None or match.lastindex is None:
            return None, {}
        route, convertors, first = self._found[match.lastindex]
        if route is None:
            return None, {}
        return route, {
            name: convertor.convert(match[first + number])
            for number, (name, convertor) in enumerate(convertors.items())
        }


class _Body:
    """A request's body on its way in, never longer than `limit`."""

    __slots__ = ("_limit", "_raw", "_receive", "_size")

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._size = 0
        self._raw: bytes | None = None

    async def receive(self) -> Message:
        """Raises PayloadTooLarge."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            if self._size > self._limit:
                raise PayloadTooLarge
        return message

    async def read(self) -> bytes:
        """The whole of it. Raises PayloadTooLarge, ClientDisconnect."""
        parts = []
        more = True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        self._raw = parts[0] if len(parts) == 1 else b"".join(parts)
        return self._raw

    async def again(self) -> Message:
        """What was read, once more, as if it came just now; then what follows."""
        if self._raw is None:
            return await self._receive()
        raw, self._raw = self._raw, None
        return {"type": "http.request", "body": raw, "more_body": False}


def _unnamed(regex: re.Pattern[str]) -> str:
    return _GROUP_NAME.sub("", regex.pattern)


def _leading_strict_routes(routes: Iterable[Any]) -> Iterator[StrictRoute]:
    for route in routes:
        if not isinstance(route, StrictRoute):
            return
        yield route


def _steps_of(route: APIRoute) -> list[_Step]:
    """The dependencies, each once and before what needs it, and last the handler."""
    answer = route.endpoint.__annotations__.get("return")
    if not (isinstance(answer, type) and issubclass(answer, Response)):
        raise _NotKnown
    if len(route.dependant.body_params) > 1 or route._embed_body_fields:  # noqa: SLF001 - FastAPI has no other word
        raise _NotKnown
    steps: list[_Step] = []
    numbers: dict[Any, int] = {}

    def add(dependant: Dependant) -> int:
        if dependant.body_params and dependant is not route.dependant:
            raise _NotKnown
        results = [(sub.name, add(sub)) for sub in dependant.dependencies]
        if dependant.call not in numbers or dependant is route.dependant:
            steps.append(_Step(dependant, ((name, at) for name, at in results if name is not None)))
            numbers[dependant.call] = len(steps) - 1
        return numbers[dependant.call]

    add(route.dependant)
    return steps


def _has_extras(dependant: Dependant) -> bool:
    return (
        not dependant.use_cache
        or dependant.concurrency is not None
        or bool(dependant.cookie_params)
        or dependant.websocket_param_name is not None
        or dependant.http_connection_param_name is not None
        or dependant.response_param_name is not None
        or dependant.background_tasks_param_name is not None
        or dependant.security_scopes_param_name is not None
        or any(
            isinstance(field.field_info, Form) or not isinstance(field.field_info, Body)
            for field in dependant.body_params
        )
    )


def _is_coroutine(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
