"""The runtime: opens an artefact and generates from it. It knows no passes, families or tracer."""

if __name__ != "glmc.runtime":
    raise ImportError("this folder is the package glmc.runtime; install the project (pip install -e .) and import that")
