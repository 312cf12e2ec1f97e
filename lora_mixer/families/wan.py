"""Wan 2.1 and 2.2, VACE, Fun, Animate, and the models built on them."""

from __future__ import annotations

from lora_mixer.families.family import Family

WAN = Family(
    "Wan",
    classes=("Wan", "SkyReelsV2", "ChronoEdit", "Helios", "AnyFlow"),
    layouts={
        "original": """
{blocks,vace_blocks}.N.self_attn.q -> {blocks,vace_blocks}.N.attn1.to_q
{blocks,vace_blocks}.N.self_attn.k -> {blocks,vace_blocks}.N.attn1.to_k
{blocks,vace_blocks}.N.self_attn.v -> {blocks,vace_blocks}.N.attn1.to_v
{blocks,vace_blocks}.N.self_attn.o -> {blocks,vace_blocks}.N.attn1.to_out.0
{blocks,vace_blocks}.N.cross_attn.q -> {blocks,vace_blocks}.N.attn2.to_q
{blocks,vace_blocks}.N.cross_attn.k -> {blocks,vace_blocks}.N.attn2.to_k
{blocks,vace_blocks}.N.cross_attn.v -> {blocks,vace_blocks}.N.attn2.to_v
{blocks,vace_blocks}.N.cross_attn.o -> {blocks,vace_blocks}.N.attn2.to_out.0
{blocks,vace_blocks}.N.self_attn.norm_q -> {blocks,vace_blocks}.N.attn1.norm_q
{blocks,vace_blocks}.N.self_attn.norm_k -> {blocks,vace_blocks}.N.attn1.norm_k
{blocks,vace_blocks}.N.cross_attn.norm_q -> {blocks,vace_blocks}.N.attn2.norm_q
{blocks,vace_blocks}.N.cross_attn.norm_k -> {blocks,vace_blocks}.N.attn2.norm_k
blocks.N.cross_attn.{k_img,v_img,norm_k_img} -> blocks.N.attn2.{add_k_proj,add_v_proj,norm_added_k}
{blocks,vace_blocks}.N.ffn.0 -> {blocks,vace_blocks}.N.ffn.net.0.proj
{blocks,vace_blocks}.N.ffn.2 -> {blocks,vace_blocks}.N.ffn.net.2
{blocks,vace_blocks}.N.norm3 -> {blocks,vace_blocks}.N.norm2
{blocks,vace_blocks}.N.modulation -> {blocks,vace_blocks}.N.scale_shift_table
vace_blocks.N.{before_proj,after_proj} -> vace_blocks.N.{proj_in,proj_out}
head.modulation -> scale_shift_table
head.head -> proj_out
time_embedding.{0,2} -> condition_embedder.time_embedder.{linear_1,linear_2}
text_embedding.{0,2} -> condition_embedder.text_embedder.{linear_1,linear_2}
time_projection.1 -> condition_embedder.time_proj
img_emb.proj.{0,4} -> condition_embedder.image_embedder.{norm1,norm2}
img_emb.proj.1 -> condition_embedder.image_embedder.ff.net.0.proj
img_emb.proj.3 -> condition_embedder.image_embedder.ff.net.2
img_emb.emb_pos -> condition_embedder.image_embedder.pos_embed
face_adapter.fuser_blocks.N.linear1_kv -> face_adapter.N.to_k .to_v
face_adapter.fuser_blocks.N.{linear1_q,linear2,q_norm,k_norm} -> face_adapter.N.{to_q,to_out,norm_q,norm_k}
face_encoder.{conv1_local,conv2,conv3}.conv -> face_encoder.{conv1_local,conv2,conv3}
motion_encoder.enc.fc.N -> motion_encoder.motion_network.N
motion_encoder.enc.net_app.convs.{0.0,8} -> motion_encoder.{conv_in,conv_out}
motion_encoder.enc.net_app.convs.{1,2,3,4,5,6,7}.conv1.0 -> motion_encoder.res_blocks.{0,1,2,3,4,5,6}.conv1
motion_encoder.enc.net_app.convs.{1,2,3,4,5,6,7}.conv2.1 -> motion_encoder.res_blocks.{0,1,2,3,4,5,6}.conv2
motion_encoder.enc.net_app.convs.{1,2,3,4,5,6,7}.skip.1 -> motion_encoder.res_blocks.{0,1,2,3,4,5,6}.conv_skip
blocks.N.self_attn.{q,k,v,o} -> blocks.N.self_attn.{to_q,to_k,to_v,to_out.0}
blocks.N.cross_attn.{q,k,v,o} -> blocks.N.cross_attn.{to_q,to_k,to_v,to_out.0}
blocks.N.cross_attn.{k_img,v_img,norm_k_img} -> blocks.N.cross_attn.{add_k_proj,add_v_proj,norm_added_k}
blocks.N.block.self_attn.{q,k,v,o} -> blocks.N.self_attn.{to_q,to_k,to_v,to_out.0}
blocks.N.block.cross_attn.{q,k,v,o} -> blocks.N.cross_attn.{to_q,to_k,to_v,to_out.0}
blocks.N.block.cross_attn.{k_img,v_img,norm_k_img} -> blocks.N.cross_attn.{add_k_proj,add_v_proj,norm_added_k}
blocks.N.block.self_attn.{norm_q,norm_k} -> blocks.N.self_attn.{norm_q,norm_k}
blocks.N.block.cross_attn.{norm_q,norm_k} -> blocks.N.cross_attn.{norm_q,norm_k}
blocks.N.block.ffn.{0,2} -> blocks.N.ffn.{0,2}
blocks.N.block.{norm3,modulation} -> blocks.N.{norm3,modulation}
""",
        # what diffusers calls these layers in all models but Animate 2, whose own names are half the original's
        "diffusers": """
blocks.N.attn1.{to_q,to_k,to_v,to_out.0} -> blocks.N.self_attn.{to_q,to_k,to_v,to_out.0}
blocks.N.attn2.{to_q,to_k,to_v,to_out.0} -> blocks.N.cross_attn.{to_q,to_k,to_v,to_out.0}
blocks.N.attn2.{add_k_proj,add_v_proj,norm_added_k} -> blocks.N.cross_attn.{add_k_proj,add_v_proj,norm_added_k}
blocks.N.attn1.{norm_q,norm_k} -> blocks.N.self_attn.{norm_q,norm_k}
blocks.N.attn2.{norm_q,norm_k} -> blocks.N.cross_attn.{norm_q,norm_k}
blocks.N.ffn.net.{0.proj,2} -> blocks.N.ffn.{0,2}
blocks.N.norm2 -> blocks.N.norm3
blocks.N.scale_shift_table -> blocks.N.modulation
scale_shift_table -> head.modulation
proj_out -> head.head
condition_embedder.time_embedder.{linear_1,linear_2} -> time_embedding.{0,2}
condition_embedder.text_embedder.{linear_1,linear_2} -> text_embedding.{0,2}
condition_embedder.time_proj -> time_projection.1
condition_embedder.image_embedder.{norm1,norm2} -> img_emb.proj.{0,4}
condition_embedder.image_embedder.ff.net.{0.proj,2} -> img_emb.proj.{1,3}
""",
    },
    absent="""
blocks.N.cross_attn.{k_img,v_img,norm_k_img}
blocks.N.attn2.{add_k_proj,add_v_proj,norm_added_k}
img_emb.*
condition_embedder.image_embedder.*
{vace_blocks,vace_patch_embedding}.*
vace_patch_embedding
{face_adapter,face_encoder,motion_encoder,pose_patch_embedding}.*
pose_patch_embedding
""",
    marks=r"(?:^|_)(?<!transformer_)(?:blocks|vace_blocks)_0_(?:(?:self|cross)_attn_(?:[qkvo]|k_img|v_img)|ffn_0|attn0_to_[qkv]|ffn_net_0_\w+)$",
    headers=("wan",),
    said=("wan",),
    transformers=(
        ("WanTransformer3DModel", {}),
        ("WanTransformer3DModel", {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}),
        ("WanTransformer3DModel", {"in_channels": 36}),
        ("WanTransformer3DModel", {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}),
        (
            "WanTransformer3DModel",
            {
                "num_attention_heads": 24,
                "in_channels": 48,
                "out_channels": 48,
                "ffn_dim": 14336,
                "num_layers": 30,
            },
        ),
    ),
    kohya=("wan2.1", "False", "wan2.1/lora"),
    kohya_flat="original",
)
