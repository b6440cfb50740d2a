"""Run in the environment: our image network of BioViL-T against the published package's own.

Both take the same random weights; the published ones are not needed.
"""

import torch
from health_multimodal.image.model.model import ImageModel
from health_multimodal.image.model.types import ImageEncoderType

import chexgenbench.jobs.worker
from chexgenbench_plugins.encoders.biovil_t import WIDTH, _image_network

assert chexgenbench.jobs.worker.main
torch.manual_seed(0)
theirs = ImageModel(ImageEncoderType.RESNET50_MULTI_IMAGE, joint_feature_size=WIDTH).eval()
weights = theirs.state_dict()
ours = _image_network().eval()
missing, unknown = ours.load_state_dict(weights, strict=False)
assert not missing, missing
assert all(name.startswith(("encoder.vit_pooler.", "encoder.encoder.fc.")) for name in unknown)
with torch.inference_mode():
    images = torch.rand(2, 3, 448, 448)
    expected = torch.nn.functional.normalize(theirs(images).projected_global_embedding, dim=1)
    apart = (ours(images) - expected).abs().max().item()
assert apart < 1e-5, apart
print(f"biovil-t: as hi-ml-multimodal to {apart:.1e}")
