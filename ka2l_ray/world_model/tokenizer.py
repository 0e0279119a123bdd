"""The world's fast tokenizer: one token per word of the world, one per byte of everything else.

In: a `World`. Out: an ordinary Hugging Face fast tokenizer, left-padding, with `<pad>` and `</s>`.
Refuses to know: models, training. Any text survives a round trip, so real corpora can be tokenized too.
"""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ka2l_ray.world.facts import World, all_words

PAD, END = "<pad>", "</s>"


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: a pre-token that is in the vocabulary is one token, any other becomes its
    bytes."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words = [*all_words(), *world.given, *world.family, *world.outer_given, *world.outer_family]
    whole = [level.pre_tokenize_str(text)[0][0] for text in ["Question", "Answer", *(f" {word}" for word in words)]]
    tokens = dict.fromkeys([PAD, END, *sorted(level.alphabet()), *whole])
    vocabulary = {token: i for i, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    core.pre_tokenizer = level
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
