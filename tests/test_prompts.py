"""Visual prompts on a tiny vision transformer against a forward pass written by hand."""

import copy

import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.transformer import VisionTransformer
from torch import nn

from clair.prompts import VisualPrompts, trainable

LAYERS, WIDTH, COUNT = 3, 16, 2


def tower(pool="tok", seed=0):
    torch.manual_seed(seed)
    visual = VisionTransformer(
        image_size=16, patch_size=8, width=WIDTH, layers=LAYERS, heads=2, mlp_ratio=2.0, output_dim=6, pool_type=pool
    )
    for parameter in visual.parameters():  # so that no bias is 0 and no LayerNorm the identity
        nn.init.normal_(parameter, std=0.3)
    return visual.eval()


def prompted(depth, pool="tok", seed=0):
    visual = tower(pool, seed)
    prompts = VisualPrompts(visual, COUNT, depth, torch.Generator().manual_seed(1))
    nn.init.normal_(prompts.tokens, generator=torch.Generator().manual_seed(2))
    return visual, prompts


def images(count=3):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(5))


# -- the forward pass by hand -------------------------------------------------------------------


def layer_norm(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def attention(x, attn):
    out, size = [], x.shape[-1] // attn.num_heads
    q, k, v = (x @ w.T + b for w, b in zip(attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3), strict=True))
    for head in range(attn.num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / size**0.5
        out.append(torch.softmax(scores, -1) @ v[..., part])
    return torch.cat(out, -1) @ attn.out_proj.weight.T + attn.out_proj.bias


def by_hand(visual, pixels, tokens):
    """Features with ``tokens`` [depth, count, width] behind the class token, fresh ones in every level."""
    patches = nn.functional.unfold(pixels, 8, stride=8).transpose(1, 2) @ visual.conv1.weight.flatten(1).T
    first = visual.class_embedding.expand(len(pixels), 1, -1)
    x = layer_norm(torch.cat([first, patches], 1) + visual.positional_embedding, visual.ln_pre)
    cls, patches = x[:, :1], x[:, 1:]
    extra = x[:, :0]
    for level, block in enumerate(visual.transformer.resblocks):
        if level < len(tokens):
            extra = tokens[level].expand(len(pixels), -1, -1)
        x = torch.cat([cls, extra, patches], 1)
        x = x + attention(layer_norm(x, block.ln_1), block.attn)
        hidden = layer_norm(x, block.ln_2) @ block.mlp.c_fc.weight.T + block.mlp.c_fc.bias
        x = x + nn.functional.gelu(hidden) @ block.mlp.c_proj.weight.T + block.mlp.c_proj.bias
        cls, extra, patches = x[:, :1], x[:, 1 : 1 + extra.shape[1]], x[:, 1 + extra.shape[1] :]
    if visual.pool_type == "avg":
        return layer_norm(patches, visual.ln_post).mean(1) @ visual.proj
    return layer_norm(cls[:, 0], visual.ln_post) @ visual.proj


@pytest.mark.parametrize("pool", ["tok", "avg"])
@pytest.mark.parametrize("depth", [0, 1, 2, LAYERS])
def test_equals_a_forward_pass_by_hand(depth, pool):
    if depth == 0:
        visual, tokens = tower(pool), torch.empty(0, COUNT, WIDTH)
    else:
        visual, prompts = prompted(depth, pool)
        tokens = prompts.tokens
    torch.testing.assert_close(visual(images()), by_hand(visual, images(), tokens), atol=1e-5, rtol=1e-5)


def test_prompts_change_the_features_and_every_level_does():
    plain = tower()(images())
    found = [plain] + [prompted(depth)[0](images()) for depth in (1, 2, 3)]
    for i in range(len(found)):
        for j in range(i):
            assert (found[i] - found[j]).abs().max() > 1e-3


@pytest.mark.parametrize("pool", ["tok", "avg"])
@pytest.mark.parametrize("depth", [1, LAYERS])
def test_where_no_token_looks_at_another_prompts_change_nothing(depth, pool):
    # Each token then only meets itself, so what is pooled must be what was pooled before.
    plain, (visual, _) = tower(pool), prompted(depth, pool)
    for model in (plain, visual):
        for block in model.transformer.resblocks:
            nn.init.zeros_(block.attn.out_proj.weight)
    torch.testing.assert_close(visual(images()), plain(images()), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("depth", [1, 2, LAYERS])
def test_the_blocks_see_more_tokens_and_the_pooling_does_not(depth):
    visual, _ = prompted(depth)
    inside, behind = [], []
    for block in visual.transformer.resblocks:
        block.register_forward_hook(lambda module, args, out: inside.append(tuple(out.shape)))
    visual.ln_post.register_forward_pre_hook(lambda module, args: behind.append(tuple(args[0].shape)))
    out = visual(images())
    assert inside == [(3, 5 + COUNT, WIDTH)] * LAYERS
    assert behind == [(3, 5, WIDTH)]
    assert out.shape == (3, 6)


@pytest.mark.parametrize("depth", [1, LAYERS])
def test_a_deep_copy_is_the_same_and_its_own(depth):
    visual, prompts = prompted(depth)
    before = visual(images())
    copied = copy.deepcopy(visual)
    assert torch.equal(copied(images()), before)
    assert copied.prompts is not prompts
    for level in range(depth):  # each level of the copy reads the copy's tokens
        last = copied(images())
        with torch.no_grad():
            copied.prompts.tokens[level].neg_()  # (LayerNorm would not see a constant)
        assert (copied(images()) - last).abs().max() > 1e-3
    assert torch.equal(visual(images()), before)
    with torch.no_grad():
        prompts.tokens.neg_()
    assert not torch.equal(visual(images()), before)


@pytest.mark.parametrize("depth", [1, 2, LAYERS])
def test_every_prompt_gets_a_gradient_that_equals_a_finite_difference(depth):
    visual, prompts = prompted(depth)
    visual.double()
    pixels = images().double()

    def value():
        return visual(pixels).square().sum()

    value().backward()
    assert (prompts.tokens.grad.abs().amax(-1) > 1e-6).all()
    for level in range(depth):
        for token in range(COUNT):
            with torch.no_grad():
                prompts.tokens[level, token, 3] += 1e-5
                above = value()
                prompts.tokens[level, token, 3] -= 2e-5
                below = value()
                prompts.tokens[level, token, 3] += 1e-5
            slope = float(above - below) / 2e-5
            assert float(prompts.tokens.grad[level, token, 3]) == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_prompts_start_from_the_generator():
    def tokens(seed):
        return VisualPrompts(tower(), COUNT, 2, torch.Generator().manual_seed(seed)).tokens

    assert tokens(3).shape == (2, COUNT, WIDTH)
    assert torch.equal(tokens(3), tokens(3))
    assert not torch.equal(tokens(3), tokens(4))
    assert tokens(3).abs().max() < 0.2


def test_prompts_are_saved_with_the_model():
    visual, prompts = prompted(2)
    assert torch.equal(visual.state_dict()["prompts.tokens"], prompts.tokens)
    assert [name for name, _ in visual.named_parameters() if "prompt" in name] == ["prompts.tokens"]


def test_errors_say_what_would_be_right():
    rng = torch.Generator()
    for depth in (0, LAYERS + 1):
        with pytest.raises(ValueError, match=rf"prompt_depth is {depth}: this model has 3 blocks, choose 1 to 3"):
            VisualPrompts(tower(), COUNT, depth, rng)
    with pytest.raises(ValueError, match="prompt_tokens is 0: choose at least 1"):
        VisualPrompts(tower(), 0, 1, rng)
    with pytest.raises(ValueError, match="vision transformer"):
        VisualPrompts(nn.Conv2d(3, 3, 1), COUNT, 1, rng)


# -- what learns --------------------------------------------------------------------------------


def clip_module():
    vision = CLIPVisionCfg(layers=LAYERS, width=WIDTH, head_width=8, patch_size=8, image_size=16)
    text = CLIPTextCfg(context_length=8, vocab_size=50, width=8, heads=2, layers=1)
    module = open_clip.CLIP(6, vision, text)
    VisualPrompts(module.visual, COUNT, 2, torch.Generator())
    return module


EXPECTED = {
    "prompts": lambda name: name == "visual.prompts.tokens",
    "layernorm": lambda name: name.startswith("visual.") and ".ln_" in name,
    "prompts+layernorm": lambda name: EXPECTED["prompts"](name) or EXPECTED["layernorm"](name),
    "encoder": lambda name: name.startswith("visual."),
    "encoder+prompts": lambda name: name.startswith("visual."),
}


@pytest.mark.parametrize("what", EXPECTED)
def test_trainable_frees_what_it_names_and_freezes_the_rest(what):
    module = clip_module()
    learnt = trainable(module, what)
    free = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert free == {name for name, _ in module.named_parameters() if EXPECTED[what](name)}
    assert free
    assert {id(p) for p in learnt} == {id(p) for p in module.parameters() if p.requires_grad}
    assert len(learnt) == len(free)
    if what == "layernorm":
        assert len(free) == 2 * (2 * LAYERS + 2)  # weight and bias of two a block, ln_pre and ln_post


def test_the_text_tower_and_the_scale_never_learn():
    for what in EXPECTED:
        module = clip_module()
        trainable(module, what)
        assert not module.logit_scale.requires_grad
        assert not any(p.requires_grad for p in module.transformer.parameters())


def test_unknown_part_is_refused():
    with pytest.raises(ValueError, match=r"'layer-norm' is unknown, join some of prompts, layernorm, encoder by '\+'"):
        trainable(clip_module(), "prompts+layer-norm")
