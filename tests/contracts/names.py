"""Names that some language's generated code cannot carry, or only in disguise."""

from __future__ import annotations

import keyword

_GO = """
    break case chan const continue defer else fallthrough for func go goto if import interface
    map package range return select struct switch type var
"""
_TYPESCRIPT = """
    any as async await boolean break case catch class const constructor continue debugger
    declare default delete do else enum export extends false finally for from function get if
    implements import in instanceof interface let module namespace never new null number
    object of package private protected public readonly return set static string super switch
    symbol this throw true try type typeof undefined unknown var void while with yield
"""
_JAVA = """
    abstract assert boolean break byte case catch char class const continue default do double
    else enum extends final finally float for goto if implements import instanceof int
    interface long native new null package private protected public record return sealed short
    static strictfp super switch synchronized this throw throws transient true false try var
    void volatile while yield
"""
_RUST = """
    abstract as async await become box break const continue crate do dyn else enum extern
    false final fn for gen if impl in let loop macro match mod move mut override priv pub ref
    return self static struct super trait true try type typeof union unsafe unsized use
    virtual where while yield
"""
_CPP = """
    alignas alignof and and_eq asm atomic_cancel auto bitand bitor bool break case catch char
    char8_t char16_t char32_t class co_await co_return co_yield compl concept const const_cast
    consteval constexpr constinit continue decltype default delete do double dynamic_cast else
    enum explicit export extern false float for friend goto if inline int long mutable
    namespace new noexcept not not_eq nullptr operator or or_eq private protected public
    register reinterpret_cast requires return short signed sizeof static static_assert
    static_cast struct switch template this thread_local throw true try typedef typeid
    typename union unsigned using virtual void volatile wchar_t while xor xor_eq
"""
# Macros of C's headers, and what message classes have for methods of their own.
_TAKEN = """
    errno linux unix major minor stdin stdout stderr null eof descriptor default_instance
    default_instance_for_type descriptor_for_type all_fields unknown_fields serialized_size
    parser_for_type initialization_error_string constructor mergefrom copyfrom clear swap
    bytesize hasfield which_oneof extensions
"""
# Contextual words, which may be names anywhere a name of ours can stand.
_CONTEXTUAL_TYPESCRIPT = """
    any as async boolean declare from get module namespace never number object of readonly set
    string symbol type undefined unknown
"""

KEYWORDS = {
    "Python": {word.lower() for word in keyword.kwlist},
    "Go": {*_GO.split()},
    "TypeScript": {*_TYPESCRIPT.split()} - {*_CONTEXTUAL_TYPESCRIPT.split()},
    "Java": {*_JAVA.split()} - {"record", "sealed", "var", "yield"},
    "Rust": {*_RUST.split()} - {"union", "gen"},
    "C++": {*_CPP.split()},
    "generated code": {*_TAKEN.split()},
}

# Method names that clients of some language have already (tonic: connect, new, with_interceptor).
METHODS_TAKEN = {"connect", "new", "withinterceptor", "withorigin", "close", "getstate", "build"}
# Type names that stand for something else where they are imported.
TYPES_TAKEN = {
    *["any", "box", "class", "error", "integer", "object", "option", "result", "string", "vec"]
}
# Keywords that every generator here is known to escape, or to render harmless, as a *field*.
FIELDS_ESCAPED = {"type", "default", "package", "match", "self"}


def clashes(name: str) -> set[str]:
    """The languages that have this name for themselves."""
    return {language for language, words in KEYWORDS.items() if name.lower() in words}
