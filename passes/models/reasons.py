"""What an error of another library says, on one line that does not end before its content."""

from __future__ import annotations

from passes.models import vendor

LENGTH = 500
SHOWN_FAULTS = 3


def reason(error: BaseException) -> str:
    """The error's own words up to where they get lengthy; never a line that ends open or points to another text."""
    if isinstance(error, KeyError) and " " not in str(error):
        return f"{error} is not known"
    faults = vendor.loading_faults(error)
    if faults:
        more = len(faults) - SHOWN_FAULTS
        return "; ".join(faults[:SHOWN_FAULTS])[:LENGTH] + (f"; and {more} more" if more > 0 else "")
    said = error.args[0] if isinstance(error, KeyError) else error
    lines = [line.strip() for line in str(said).strip().splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    for line in lines[1:]:
        if not text.endswith(":") and len(text) > 40:
            break
        text += f" {line}"
    return text[:LENGTH]
