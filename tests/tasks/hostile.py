"""Answers that a model should not write, and that a grader has to survive. None is right."""

import pathlib

MB = 1_000_000


def hostile_answers(canary: pathlib.Path) -> dict[str, str]:
    """Answers by name. Several would create the file ``canary`` if anything evaluated them."""
    touch = f"open({str(canary)!r}, 'w').close()"
    shell = f"touch {canary}"
    return {
        # Numbers that no memory holds.
        "python tower": "9**9**9**9",
        "caret tower": "9^9^9^9",
        "braced tower": "9^{9^{9^{9}}}",
        "googolplex": "10^{10^{10}}",
        "tower less itself": "10^{10^{10}} - 10^{10^{10}} + 1",
        "tower modulo": r"9^{9^{9}} \bmod 7",
        "negative tower": "2^{-2^{2^{2^{2^{2}}}}}",
        "factorial": "(10^{10})!",
        "factorial tower": "9!!!!!!!!!!",
        "nested factorials": "((((9!)!)!)!)!",
        "binomial": r"\binom{10^{15}}{5 \cdot 10^{14}}",
        "root of a tower": r"\sqrt{10^{10^{10}}}",
        "fraction of towers": r"\frac{9^{9^9}}{9^{9^9}}",
        "logarithm of a tower": r"\log_{2} (2^{10^{12}})",
        "sine of a tower": r"\sin(10^{10^{9}})",
        "many digits": "9" * 4299,
        "more digits than Python reads": "9" * 5000,
        "many digits behind the point": "0." + "1" * 3900,
        # Work without end.
        "sum": r"\sum_{n=1}^{10^{12}} \frac{1}{n^2+n+\sin n}",
        "product": r"\prod_{n=1}^{10^9} (x+n)",
        "integral": r"\int_0^{1} \frac{\sin(x^{x^{x}}) e^{-x^2}}{\ln(1+x^{\pi})} dx",
        "limit": r"\lim_{x \to 0} x^{x^{x^{x^{x}}}}",
        "expansion": "(a+b+c+d+e+f+g)^{400}",
        "power of a sum": r"(x+y+z+1)^{99} - (1+x+y+z)^{99}",
        "equation": r"x^{17} + \sin x + e^{x^2} = \ln(x+\tan x)",
        "system": r"x^9+y^9=1, x^8 y + y^8 = x, z^7+x=y",
        "nested roots": r"\sqrt{2+" * 40 + "x" + "}" * 40,
        "continued fraction": r"1+\frac{1}{" * 50 + "x" + "}" * 50,
        # Depth and length.
        "parentheses": "(" * 1000 + "1" + ")" * 1000,
        "many parentheses": "(" * 100_000 + "1" + ")" * 100_000,
        "braces": "{" * 20_000 + "1" + "}" * 20_000,
        "open braces": r"\frac{" * 20_000,
        "minus signs": "-" * 3000 + "1",
        "carets": "2" + "^2" * 1500,
        "a long sum": "+".join(f"x_{i}" for i in range(900)),
        "a megabyte of digits": "7" * MB,
        "a megabyte of letters": "a" * MB,
        "a megabyte of spaces": "1" + " " * MB + "2",
        "a megabyte of dollars": "$" * MB,
        "a megabyte of backslashes": "\\" * MB,
        "a megabyte of commas": "1," * (MB // 2),
        "matrix": r"\begin{pmatrix}" + r" \\ ".join(" & ".join("1" * 30) for _ in range(30)) + r"\end{pmatrix}",
        "power of a matrix": r"\begin{pmatrix} 1 & 2 \\ 3 & x \end{pmatrix}^{10^{6}}",
        "determinant": r"\det\begin{pmatrix}"
        + r"\\".join("&".join(f"x_{i}" for i in range(12)) for _ in range(12))
        + r"\end{pmatrix}",
        # Code.
        "import": f"__import__('os').system({shell!r})",
        "eval": f"eval({touch!r})",
        "exec": f"exec({touch!r})",
        "open": touch,
        "in a number": f"1 if {touch} else 2",
        "lambda": f"(lambda: {touch})()",
        "classes": "().__class__.__bases__[0].__subclasses__()",
        "sympy": f"sympify({touch!r})",
        "text": rf"\text{{__import__('os').system({shell!r})}}",
        "operator name": rf"\operatorname{{__import__('os').system({shell!r})}}(1)",
        "variable": rf"\variable{{{touch}}}",
        "shell": f"$({shell})",
        "backticks": f"`{shell}`",
        "write18": rf"\immediate\write18{{{shell}}}",
        "input": r"\input{/etc/passwd}",
        "openout": rf"\newwrite\f\immediate\openout\f={canary}\relax",
        "def": r"\def\x{\x\x}\x",
        "format": "{0.__class__.__init__.__globals__}",
        "percent format": "%s%s%s%n%n%n",
        "template": "{{7*7}}${7*7}#{7*7}",
        "pickle": "cos\nsystem\n(S'" + shell + "'\ntR.",
        # Characters.
        "NUL": "4\x002",
        "NULs": "\x00" * 1000,
        "newlines": "4\n2\n\r\n",
        "end of the protocol": '"]\n["42", "42"]\n',
        "half a surrogate pair": "4\ud800",
        "other half": "\udfff",
        "right to left": "\u202e24",
        "combining": "4" + "\u0301" * 10_000,
        "other digits": "४२",
        "superscripts": "4²2",
        "nothing": "",
        "blank": " \t\n",
    }
