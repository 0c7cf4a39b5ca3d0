"""The passes of the compiler: tidy, match, choose, outline, lower."""

if __name__ != "glmc.passes":
    raise ImportError("this folder is the package glmc.passes; install the project (pip install -e .) and import that")
