"""Average the weights of models of one architecture and save the result, as "model soups" do (Wortsman et al., 2022).

    python tools/average.py local-dir:runs/camvid_lite0/best local-dir:runs/camvid_lite0_large/best -o runs/average
    python tools/average.py uper_ddsm_lite0_camvid --fresh .channel. -o runs/start

With one model and ``--fresh TEXT``, parameters with TEXT in their names start anew, from seed 0; biases of output
convolutions keep the constant that they add.

Weights of which one began from the other lie in one valley: between them a model scores about as well on images like
those of the training, and better on others (docs/models/uper_ddsm_lite0_camvid.md has figures). Classes, preprocessing
and everything else are those of the last model.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

import ddsm_zoo
from ddsm_zoo.models.segmenter import Segmenter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="+", help="names or addresses of pretrained models, the last one lends the rest"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="the folder to save to")
    parser.add_argument("--fresh", metavar="TEXT", help="start parameters with TEXT in their names anew")
    options = parser.parse_args()
    torch.manual_seed(0)
    models = [ddsm_zoo.create_model(name, pretrained=True) for name in options.models]
    model = models[-1]
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.stack([each.state_dict()[name] for each in models]).mean(0))
        if options.fresh:
            fresh = dict(Segmenter(model.config).named_parameters())
            for name, parameter in model.named_parameters():
                if options.fresh in name and not name.endswith(".out.bias"):
                    parameter.copy_(fresh[name])
    assert model.provenance.weights is not None
    weights = dataclasses.replace(model.provenance.weights, metrics={}, taps_on_map={})  # of the last one alone
    model.provenance = dataclasses.replace(model.provenance, weights=weights)
    ddsm_zoo.save_pretrained(model, options.out)
    print(f"wrote the average of {len(models)} models to {options.out}")


if __name__ == "__main__":
    main()
