"""The codes of refused fields: a closed vocabulary of ours, whatever library finds the fault.

A client may branch on a code, so it must not change with a release of pydantic, whose error types are therefore mapped.
"""

from collections.abc import Mapping
from typing import Literal

from typing_extensions import TypeAliasType

FieldErrorCode = TypeAliasType(
    "FieldErrorCode",
    Literal[
        "ambiguous",
        "blank_text",
        "control_character",
        "in_the_past",
        "invalid_choice",
        "invalid_datetime",
        "invalid_email",
        "invalid_format",
        "invalid_locale",
        "invalid_number",
        "invalid_period",
        "invalid_text",
        "invalid_timezone",
        "invalid_url",
        "invalid_uuid",
        "invalid_value",
        "missing",
        "number_too_large",
        "occurred_at_in_future",
        "repeated_header",
        "repeated_parameter",
        "too_common",
        "too_deep",
        "too_large",
        "too_long",
        "too_many_digits",
        "too_many_parameters",
        "too_short",
        "too_similar",
        "too_small",
        "unknown_field",
        "unknown_kind",
        "unknown_parameter",
        "url_blocked",
        "wrong_type",
    ],
)

FIELD_CODES: Mapping[FieldErrorCode, str] = {
    "ambiguous": "The field contradicts another one of the request.",
    "blank_text": "The text has no visible character.",
    "control_character": "The text holds a control character, a line break or a bidirectional control.",
    "in_the_past": "The time must lie in the future.",
    "invalid_choice": "The value is none of those that are allowed.",
    "invalid_datetime": "The value is not a date and time of RFC 3339 with an offset, between the years 1 and 9999.",
    "invalid_email": "The value is not an e-mail address.",
    "invalid_format": "The text does not match the pattern of the field.",
    "invalid_locale": "The value is not a language tag of BCP 47.",
    "invalid_number": "The text is not a number.",
    "invalid_period": "The period is empty or too long.",
    "invalid_text": "The text holds NUL or a lone surrogate.",
    "invalid_timezone": "The value is not a time zone of the IANA database.",
    "invalid_url": "The value is not an address that begins with http or https.",
    "invalid_uuid": "The value is not a UUID.",
    "invalid_value": "The value breaks a rule that `detail` names.",
    "missing": "The field is required.",
    "number_too_large": "An integer does not fit into 64 bits.",
    "occurred_at_in_future": "The event lies more than an hour in the future.",
    "repeated_header": "The header was sent more than once.",
    "repeated_parameter": "The query parameter was sent more than once.",
    "too_common": "The password is one of those that are guessed first.",
    "too_deep": "The JSON is nested too deeply.",
    "too_large": "The value is larger than the field allows.",
    "too_long": "The text or list is longer than the field allows.",
    "too_many_digits": "The number has too many digits.",
    "too_many_parameters": "The request has too many query parameters.",
    "too_short": "The text or list is shorter than the field allows.",
    "too_similar": "The password resembles the e-mail address or the name of the account.",
    "too_small": "The number is smaller than the field allows.",
    "unknown_field": "The request takes no field of this name.",
    "unknown_kind": "There is no kind of job of this name.",
    "unknown_parameter": "The request takes no query parameter of this name.",
    "url_blocked": "Webhooks are not sent to this address.",
    "wrong_type": "The value has another type than the field.",
}

# What pydantic calls these faults; its other types are those of Python objects, which no request holds.
_PYDANTIC: Mapping[FieldErrorCode, str] = {
    "missing": "missing missing_argument missing_keyword_only_argument missing_positional_only_argument",
    "unknown_field": "extra_forbidden unexpected_keyword_argument unexpected_positional_argument",
    "wrong_type": "arguments_type bool_parsing bool_type bytes_type complex_type counter_type dataclass_exact_type "
    "dataclass_type date_type datetime_type decimal_type deque_type dict_type float_type fraction_type "
    "frozen_dict_type frozen_set_type int_from_float int_type iterable_type json_type list_type mapping_type "
    "model_attributes_type model_type named_tuple_type none_required ordered_dict_type set_type string_type "
    "time_delta_type time_type tuple_type url_type uuid_type",
    "invalid_choice": "enum literal_error union_tag_invalid union_tag_not_found",
    "invalid_datetime": "date_from_datetime_inexact date_from_datetime_parsing date_future date_parsing date_past "
    "datetime_from_date_parsing datetime_future datetime_object_invalid datetime_parsing datetime_past "
    "time_delta_parsing time_parsing timezone_aware timezone_naive timezone_offset",
    "invalid_format": "string_pattern_mismatch",
    "invalid_number": "complex_str_parsing decimal_parsing finite_number float_parsing fraction_parsing int_parsing",
    "invalid_text": "bytes_invalid_encoding string_not_ascii string_unicode",
    "invalid_url": "url_parsing url_scheme url_syntax_violation",
    "invalid_uuid": "uuid_parsing uuid_version",
    "number_too_large": "int_parsing_size",
    "too_deep": "recursion_depth_exceeded recursion_loop",
    "too_large": "less_than less_than_equal",
    "too_long": "bytes_too_long string_too_long too_long url_too_long",
    "too_many_digits": "decimal_max_digits decimal_max_places decimal_whole_digits",
    "too_short": "bytes_too_short string_too_short too_short",
    "too_small": "greater_than greater_than_equal",
    "invalid_value": "assertion_error json_invalid multiple_of value_error",
}
_CODES: Mapping[str, FieldErrorCode] = {
    **{code: code for code in FIELD_CODES},
    **{error_type: code for code, error_types in _PYDANTIC.items() for error_type in error_types.split()},
}


def field_code(error_type: str) -> FieldErrorCode:
    """The code of an error type of pydantic, or of one of ours that a validator has raised."""
    return _CODES.get(error_type, "invalid_value")
