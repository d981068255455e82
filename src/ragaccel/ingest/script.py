"""Whether worker processes can import the script that runs without running it again."""

from __future__ import annotations

import ast
import sys
import threading
from pathlib import Path


def is_guarded() -> bool:
    """Tell whether what the script does now stands under `if __name__ == "__main__":`.

    A process that is not forked imports the script, and so does everything in it that is not
    guarded. Programs that are no scripts, such as notebooks, are not imported.
    """
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame and not (frame.f_globals is main.__dict__ and frame.f_code.co_name == "<module>"):
        frame = frame.f_back
    if file is None or frame is None:
        return True
    try:
        body = ast.parse(Path(file).read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, ValueError):  # a zipped or compiled program
        return True
    now = [one for one in body if one.lineno <= frame.f_lineno]
    return not now or (isinstance(now[-1], ast.If) and "__name__" in ast.dump(now[-1].test))
