"""Are the slots of one class found where they are, and no others?"""

from moesaic.adapters.feedforward import MixedFFN, attach
from moesaic.adapters.slots import slots_of
from moesaic.nn import GLU
from moesaic.testing import tiny_decoder, toy_ffn


def test_slots_are_found_by_class_in_the_order_of_the_layers():
    decoder = tiny_decoder()
    dense = slots_of(decoder, GLU)
    assert [*dense] == [f"layers.{layer}.mlp" for layer in range(len(decoder.layers))]
    assert slots_of(decoder, MixedFFN) == {}

    attach(decoder, [toy_ffn(decoder, 1, range(1, 2))])
    assert slots_of(decoder, MixedFFN) == {"layers.1.mlp": decoder.layers[1].mlp}
    assert slots_of(decoder, GLU)["layers.1.mlp.base"] is dense["layers.1.mlp"]
