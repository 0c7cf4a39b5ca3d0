"""GLM-GA: the text model and the vision tower of glm4v."""

from __future__ import annotations

from glmc.families import glm4v

TINY = {**glm4v.TINY, "model_type": "glmga", "architectures": ["Glm46VForConditionalGeneration"]}

read = glm4v.read
promises = glm4v.promises
recipe = glm4v.recipe
leftovers = glm4v.leftovers
