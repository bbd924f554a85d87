"""A traced model: its axes, and what every operation says about them.

Its files, in the order in which to read them:

    axes          the algebra of dimensions: axes, sums and products of them, unified
    operators     what operators are: families, each named once, and arguments by name
    op            the record of one operation
    rules/        one small function per operator, which says how layouts pass through it
    copying       deep copies of models, and what cannot be copied
    skeleton      copies of models without data, and how to run them
    tracer        one forward pass, observed operator by operator
    parametrised  weights behind steps: what lies behind, how it is cut and set
    attributes    integers that modules keep, and how they are set
    follow        the search for the integers that must follow an axis
    graph         Graph: members, widths, explain
    tracing       trace a model, or a part of it
"""

from prunus.graph.attributes import set_attributes
from prunus.graph.axes import Axis, Layout
from prunus.graph.copying import check_traceable, copy_model
from prunus.graph.graph import Graph, Member
from prunus.graph.op import CONSUMES, DIRECTION, PRODUCES, SCALES, Op, Tag, Untracked, tensors_in
from prunus.graph.parametrised import OwnStep, tensors_behind
from prunus.graph.rules import rule
from prunus.graph.skeleton import call, make_skeleton, named_tensors, quiet_forward
from prunus.graph.tracer import Keep, Storage
from prunus.graph.tracing import part, trace

__all__ = [
    "CONSUMES",
    "DIRECTION",
    "PRODUCES",
    "SCALES",
    "Axis",
    "Graph",
    "Keep",
    "Layout",
    "Member",
    "Op",
    "OwnStep",
    "Storage",
    "Tag",
    "Untracked",
    "call",
    "check_traceable",
    "copy_model",
    "make_skeleton",
    "named_tensors",
    "part",
    "quiet_forward",
    "rule",
    "set_attributes",
    "tensors_behind",
    "tensors_in",
    "trace",
]
