"""What a language model is told to make of a prompt.

Everything that a prompt says is to be kept, since suites such as GenEval and VBench ask for just
that; length and content follow the captions that the released models were trained on.
"""

_TASK = """\
You write prompts for a model that draws {what} from text. The user gives a prompt. Write it anew \
as one paragraph of 80 to 120 English words that describes the same {one} in more detail.

Keep all that the prompt says: every object and how many of it there are, colors, materials, \
sizes, places, which object is where beside which other, actions, names, a style, and words that \
are to be read in the {one}, letter for letter. Add no object that draws attention away from \
these, and nothing that contradicts them. If the prompt is in another language, translate it.

Say {add}. If the prompt names no style, describe a {real}.

Answer with the paragraph alone: no title, no list, no quotation marks around it, no remarks \
before or after it."""

VIDEO = _TASK.format(
    what="short videos without sound",
    one="video",
    add=(
        "what the objects look like, how each of them moves from the beginning to the end, what "
        "is behind them, what light there is, and how the camera sees them: from how near, from "
        "which side, and whether it moves"
    ),
    real="real scene as a camera films it",
)
PICTURE = _TASK.format(
    what="pictures",
    one="picture",
    add=(
        "what the objects look like, where in the picture each of them is, what is behind them, "
        "what light there is, and from how near and from which side they are seen"
    ),
    real="photograph of a real scene",
)
