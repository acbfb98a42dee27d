"""VirtualService: the fields that route requests, as Istio names them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fastproxy.regex import check_regex, check_rewrite
from fastproxy.resources.fields import (
    MAX_BODY,
    MAX_PATTERN,
    RESERVED,
    Authority,
    Base64,
    ExportTo,
    GatewayName,
    HeaderName,
    HeaderValue,
    Host,
    Location,
    Milliseconds,
    Name,
    Path,
    PortNumber,
    Text,
    Weight,
    fail,
)
from fastproxy.resources.model import Metadata, Model, one_of, ours, words
from fastproxy.resources.problem import printable


def _regex(value: str) -> str:
    if len(value) > MAX_PATTERN:
        fail(f"longer than {MAX_PATTERN} characters")
    reason = check_regex(value)
    if reason is not None:
        fail(f"refused: {reason}")
    return value


T = TypeVar("T")
Regex = Annotated[str, AfterValidator(_regex)]


class StringMatch(Model):
    may_be_empty: ClassVar[bool] = False

    exact: Text | None = None
    prefix: Text | None = None
    regex: Regex | None = None

    @model_validator(mode="after")
    def _one(self) -> StringMatch:
        if self.model_fields_set or not self.may_be_empty:
            one_of(self, "exact", "prefix", "regex")
        if self.prefix == "":
            fail("empty, which matches everything: leave the match out", "prefix")
        return self


class PresentMatch(StringMatch):
    """A StringMatch that may be empty: the field is there, whatever its value."""

    may_be_empty = True


def _path_match(match: StringMatch) -> StringMatch:
    for name in ("exact", "prefix"):
        value = getattr(match, name)
        if value is None:
            continue
        if not value.startswith("/") and value != "*":
            fail("never matches: a path starts with /", name)
        if "?" in value:
            fail("never matches: the query is not part of the path; use queryParams", name)
        if "#" in value:
            fail("never matches: no request has a '#' in its path", name)
    return match


PathMatch = Annotated[StringMatch, AfterValidator(_path_match)]


def _no_duplicates(value: dict[str, T]) -> dict[str, T]:
    seen: dict[str, str] = {}
    for name in value:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            fail(f"{printable(name)} and {printable(other)} are the same header", name)
    return value


_PSEUDO = ("uri", "scheme", "method", "authority")


def _match_header(name: str) -> str:
    if name.lower() in _PSEUDO:
        fail(f"Istio ignores this key: match the {name.lower()} by the field '{name.lower()}' of the match")
    return name


HeaderMatches = Annotated[
    dict[Annotated[HeaderName, AfterValidator(_match_header)], PresentMatch], AfterValidator(_no_duplicates)
]


class HTTPMatch(Model):
    later = words("sourceLabels sourceNamespace statPrefix")
    ours_later = words("body")

    name: Text | None = None
    uri: PathMatch | None = None
    ignoreUriCase: bool = False
    scheme: StringMatch | None = None
    method: StringMatch | None = None
    authority: StringMatch | None = None
    port: PortNumber | None = None
    headers: HeaderMatches = {}
    withoutHeaders: HeaderMatches = {}
    queryParams: dict[Text, PresentMatch] = {}
    gateways: list[GatewayName] | None = None
    cookies: Annotated[dict[HeaderName, PresentMatch], BeforeValidator(ours)] = {}

    @model_validator(mode="after")
    def _case(self) -> HTTPMatch:
        if self.ignoreUriCase and self.uri is not None and self.uri.regex is not None:
            fail("ignoreUriCase goes with exact and prefix only: begin the regex with (?i)")
        return self


class PortSelector(Model):
    number: PortNumber


class Destination(Model):
    host: Host
    subset: Name | None = None
    port: PortSelector | None = None

    @model_validator(mode="after")
    def _one_host(self) -> Destination:
        if "*" in self.host:
            fail("a destination has no wildcard")
        return self


def _settable(name: str) -> str:
    if name.lower() in RESERVED:
        fail(f"{printable(name)} belongs to one connection or frames the message: the proxy alone writes it")
    return name


def _set_name(name: str) -> str:
    if name.lower() == ":authority":
        return "host"
    return name


SetName = Annotated[str, BeforeValidator(_set_name), AfterValidator(_settable)]
PlainName = Annotated[HeaderName, AfterValidator(_settable)]


class HeaderOperations(Model):
    set: Annotated[
        dict[Annotated[HeaderName, BeforeValidator(_set_name), AfterValidator(_settable)], HeaderValue],
        AfterValidator(_no_duplicates),
    ] = {}
    add: Annotated[dict[PlainName, HeaderValue], AfterValidator(_no_duplicates)] = {}
    remove: list[PlainName] = []

    @model_validator(mode="after")
    def _host(self) -> HeaderOperations:
        if any(n.lower() == "host" for n in (*self.add, *self.remove)):
            fail("host can be set, not added or removed")
        return self


class Headers(Model):
    request: HeaderOperations | None = None
    response: HeaderOperations | None = None


class RouteDestination(Model):
    destination: Destination
    weight: Weight | None = None
    headers: Headers | None = None


class Redirect(Model):
    uri: Location | None = None
    prefixRewrite: Path | None = None
    authority: Authority | None = None
    port: PortNumber | None = None
    derivePort: Literal["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"] | None = None
    scheme: Literal["http", "https"] | None = None
    redirectCode: Literal[301, 302, 303, 307, 308] = 301

    @model_validator(mode="after")
    def _sense(self) -> Redirect:
        if self.uri is not None and self.prefixRewrite is not None:
            fail("uri and prefixRewrite exclude each other")
        if self.port is not None and self.derivePort is not None:
            fail("port and derivePort exclude each other")
        if not self.model_fields_set - {"redirectCode"}:
            fail("changes nothing: uri, prefixRewrite, authority, port, derivePort or scheme is needed")
        return self


class Body(Model):
    string: str | None = None
    bytes: Base64 | None = None

    @model_validator(mode="after")
    def _one(self) -> Body:
        one_of(self, "string", "bytes")
        if len(self.data) > MAX_BODY:
            fail(f"larger than {MAX_BODY >> 20} MiB")
        return self

    @property
    def data(self) -> Any:
        """The body's octets."""
        return self.string.encode() if self.string is not None else self.bytes


class DirectResponse(Model):
    status: Annotated[int, Field(ge=200, le=599)]
    body: Body | None = None

    @model_validator(mode="after")
    def _empty(self) -> DirectResponse:
        if self.status in (204, 205, 304) and self.body is not None and self.body.data:
            fail(f"a {self.status} answer has no body (RFC 9110 section 6.4.1)")
        return self


class RegexRewrite(Model):
    match: Annotated[str, Field(max_length=MAX_PATTERN)]
    rewrite: Text

    @model_validator(mode="after")
    def _program(self) -> RegexRewrite:
        reason = check_rewrite(self.match, self.rewrite)
        if reason is not None:
            fail(f"refused: {reason}")
        return self


class Rewrite(Model):
    uri: Path | None = None
    authority: Authority | None = None
    uriRegexRewrite: RegexRewrite | None = None

    @model_validator(mode="after")
    def _sense(self) -> Rewrite:
        if self.uri is not None and self.uriRegexRewrite is not None:
            fail("uri and uriRegexRewrite exclude each other")
        if not self.model_fields_set:
            fail("uri, authority or uriRegexRewrite is needed")
        return self


class HTTPRoute(Model):
    later = words("delegate retries fault mirror mirrors mirrorPercentage mirror_percent corsPolicy")
    ours_later = words("rateLimit fallback")

    name: Text | None = None
    match: list[HTTPMatch] = []
    route: list[RouteDestination] = []
    redirect: Redirect | None = None
    directResponse: DirectResponse | None = None
    rewrite: Rewrite | None = None
    timeout: Milliseconds | None = None
    headers: Headers | None = None

    @model_validator(mode="after")
    def _action(self) -> HTTPRoute:
        action = one_of(self, "route", "redirect", "directResponse")
        if action == "route" and not self.route:
            fail("is empty", "route")
        if action != "route":
            for name in ("rewrite", "timeout"):
                if name in self.model_fields_set:
                    fail(f"has no meaning beside {action}", name)
            if self.headers is not None and self.headers.request is not None:
                fail(f"has no meaning beside {action}", "headers", "request")
        elif len(self.route) > 1 and not any(d.weight for d in self.route):
            fail("the weights of the destinations add up to 0", "route")
        if sum(d.weight or 0 for d in self.route) > 2**32 - 1:
            fail("the weights of the destinations add up to more than 4294967295", "route")
        return self


class VirtualServiceSpec(Model):
    later = words("tls tcp")

    hosts: Annotated[list[Host], Field(min_length=1)]
    gateways: Annotated[list[GatewayName], Field(min_length=1)] | None = None
    http: Annotated[list[HTTPRoute], Field(min_length=1)]
    exportTo: ExportTo = []


class VirtualService(Model):
    apiVersion: str
    kind: Literal["VirtualService"]
    metadata: Metadata
    spec: VirtualServiceSpec
    status: Any = None
