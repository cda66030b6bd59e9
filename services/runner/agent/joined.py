"""The agent's start in a sandbox: one file that contains the code of its modules.

`python -I -S FILE FD` runs this module, compiled together with the others. So a sandbox only needs
one file, whatever it is made of, and no folder is searched. What modules import at their top is
created at once, since finding each would double the time; what functions import is loaded when it
is needed.
"""

import sys

PACKAGE = "_qflow_agent"
MODULES = "(name, code) of each"  # replaced by these, in order of their imports
LATER = "(name, marshalled code) of each"  # the same for modules that functions import


class Later:
    """Finds the modules that few sandboxes need."""

    def __init__(self, modules):
        self.codes = {"%s.%s" % (PACKAGE, name): code for name, code in modules}

    def find_spec(self, name, path=None, target=None):
        if name not in self.codes:
            return None
        from _frozen_importlib import ModuleSpec

        return ModuleSpec(name, self)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        import marshal

        exec(marshal.loads(self.codes.pop(module.__name__)), module.__dict__)


def begin(modules, later):
    """Create the modules; return the last, which imports all others."""
    kind = type(sys)
    module = sys.modules[PACKAGE] = kind(PACKAGE)
    module.__path__ = []
    sys.meta_path.insert(0, Later(later))
    for name, code in modules:
        name = "%s.%s" % (PACKAGE, name)
        module = sys.modules[name] = kind(name)
        module.__package__ = PACKAGE
        exec(code, module.__dict__)
    return module


if __name__ == "__main__":
    begin(MODULES, LATER).main()
