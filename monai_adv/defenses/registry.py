"""All defences in one table: the trainers of both hosts, the command line and the docs are generated from it.

A method is one file in this package and one entry here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from monai_adv.defenses import (
    arfl,
    ates,
    cat,
    customized_at,
    dat,
    dsbn,
    dual,
    fat,
    fgsm_rs,
    fgsm_sdi,
    free_at,
    gairat,
    gr,
    iaat,
    ima,
    lbgat,
    llr,
    mart,
    mirst,
    mma,
    rst,
    sat,
    standard,
    te,
    trades,
)
from monai_adv.defenses.base import Defense
from monai_adv.defenses.settings import DefenseSettings
from monai_adv.errors import InputError, did_you_mean

TaskName = Literal["classification", "segmentation"]
T = TypeVar("T")


@dataclass(frozen=True)
class Method:
    """What is to be known of a defence.

    Attributes:
        name: its name; ``<name>Trainer`` is its trainer in both hosts.
        defense: the class; its settings class is ``defense.settings_class``.
        family: the page of the docs that describes it.
        idea: what it trains on, in a few words.
        paper: authors, place, year.
        state: what it keeps from step to step.
        cost: network passes per sample and step in forwards (a clean step costs 3), with K steps of the attack.
        presets: named settings.
        not_for: tasks that it has no meaning for, and why.
    """

    name: str
    defense: type[Defense]
    family: str
    idea: str
    paper: str
    state: str
    cost: str
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    not_for: Mapping[TaskName, str] = field(default_factory=dict)

    @property
    def settings(self) -> type[DefenseSettings]:
        """The class of its settings."""
        return self.defense.settings_class

    @property
    def key(self) -> str:
        """Its key in :data:`METHODS`: the name in lower case."""
        return self.name.lower()

    @property
    def trainer(self) -> str:
        """Its trainer's name in both hosts."""
        return f"{self.name}Trainer"

    def trainer_class(self, base: type[T], module: str, what: str) -> type[T]:
        """The method's trainer in a host.

        Args:
            base: the host's trainer for any method; it reads the class attribute ``method``.
            module: whose global name the class will be, so that pickle finds it.
            what: the host and its docs, for the docstring: ``"{what}: trains on ..."``.
        """
        paper = f" ({self.paper})" if self.paper else ""
        doc = f"{self.name}{paper} in {what}: trains on {self.idea}."
        return type(self.trainer, (base,), {"method": self, "__module__": module, "__doc__": doc})

    def check_task(self, task: TaskName) -> None:
        """Refuse a task that the method has no meaning for.

        Raises:
            InputError: says why.
        """
        if task in self.not_for:
            others = ", ".join(m.name for m in METHODS.values() if task not in m.not_for)
            raise InputError.of("method", f"{self.name} for {task}", f"one of {others}", self.not_for[task])


_METHODS = [
    Method("Standard", standard.Standard, "adversarial", "clean images", "", "nothing", "3"),
    Method("SAT", sat.SAT, "adversarial", "attacked images", "Madry et al., ICLR 2018", "nothing", "2K + 3",
           sat.PRESETS),
    Method("TRADES", trades.TRADES, "adversarial", "clean images, and outputs that stay the same under attack",
           "Zhang et al., ICML 2019", "nothing", "2K + 7", trades.PRESETS),
    Method("MART", mart.MART, "adversarial", "attacked images, and equal outputs where the clean image is wrong",
           "Wang et al., ICLR 2020", "nothing", "2K + 6", mart.PRESETS),
    Method("GAIRAT", gairat.GAIRAT, "adversarial", "attacked images, those near the boundary with more weight",
           "Zhang et al., ICLR 2021", "nothing", "2K + 3", gairat.PRESETS),
    Method("FAT", fat.FAT, "early_stop", "attacked images that are only just wrong", "Zhang et al., ICML 2020",
           "nothing", "up to 2K + 3", fat.PRESETS),
    Method("DAT", dat.DAT, "early_stop", "attacked images, of attacks that converge better epoch by epoch",
           "Wang et al., ICML 2019", "nothing", "up to 2K + 3", dat.PRESETS),
    Method("ATES", ates.ATES, "early_stop", "attacked images that become harder epoch by epoch",
           "Sitawarin et al., arXiv 2003.09347, 2020", "nothing", "up to 2K + 3", ates.PRESETS),
    Method("CAT", cat.CAT, "early_stop", "images attacked with 0 to K steps, K growing lesson by lesson",
           "Cai et al., IJCAI 2018", "the lesson, and the best weights under it", "up to K + 3", cat.PRESETS),
    Method("IMA", ima.IMA, "margins", "clean images, and images on the boundary within a margin that grows",
           "Ma & Liang, CMPB 2023", "a margin per sample", "up to 2K + 7 + searches", ima.PRESETS),
    Method("CustomizedAT", customized_at.CustomizedAT, "margins",
           "attacked images with soft labels, within a radius of each sample's own", "Cheng et al., IJCAI 2022",
           "a radius per sample", "2K + 3", customized_at.PRESETS),
    Method("MMA", mma.MMA, "margins", "images on the boundary, for those not yet eps away from it",
           "Ding et al., ICLR 2020", "a margin per sample", "up to 2K + 6 + searches", mma.PRESETS),
    Method("IAAT", iaat.IAAT, "margins", "attacked images, within a radius that each sample finds for itself",
           "Balaji et al., arXiv 1910.08051, 2019", "a radius per sample", "up to 6K + 6", iaat.PRESETS),
    Method("TE", te.TE, "ensembling", "attacked images, and the network's own former predictions as soft labels",
           "Dong et al., ICLR 2022", "a table of soft labels per sample", "2K + 4", te.PRESETS),
    Method("LBGAT", lbgat.LBGAT, "ensembling", "attacked images, on the logits of a teacher that learns clean ones",
           "Cui et al., ICCV 2021", "a teacher network", "2K + 10, the teacher as large as the network", lbgat.PRESETS),
    Method("FGSMSDI", fgsm_sdi.FGSMSDI, "cheap", "images attacked with one step, begun where a small network says",
           "Jia et al., IEEE TIP 2022", "that network and its optimiser", "7.2, and that network's", fgsm_sdi.PRESETS),
    Method("FGSMRS", fgsm_rs.FGSMRS, "cheap", "images attacked with one step from a random point",
           "Wong et al., ICLR 2020", "nothing", "5, and up to 0.44 for watching", fgsm_rs.PRESETS),
    Method("FreeAT", free_at.FreeAT, "cheap", "images attacked with gradients that weight updates leave over",
           "Shafahi et al., NeurIPS 2019", "a perturbation", "3m, for m weight updates", free_at.PRESETS),
    Method("RST", rst.RST, "dual", "clean and attacked images, a loss each",
           "Carmon et al., NeurIPS 2019; here as in Sun et al., MICCAI 2022", "nothing", "2K + 6", rst.PRESETS),
    Method("Dual", dual.Dual, "dual", "clean and attacked images in a fixed proportion",
           "Joel et al., JCO Clinical Cancer Informatics 2022", "nothing", "2K + 6", dual.PRESETS),
    Method("MIRST", mirst.MIRST, "dual", "clean images, and several iterates of one attack from weak to strong",
           "Sun et al., MICCAI 2022", "nothing", "2K + 3 + 3 per instance (4)", mirst.PRESETS),
    Method("ARFL", arfl.ARFL, "dual", "clean and attacked images, and large features",
           "Hao et al., MICCAI 2024", "nothing", "2K + 6", arfl.PRESETS,
           {"segmentation": "its term relates the features of an image to the one label of that image"}),
    Method("DSBN", dsbn.DSBN, "dual", "clean and attacked images through normalisation layers of their own",
           "Han et al., Nature Communications 2021", "nothing", "2K + 6", dsbn.PRESETS),
    Method("GR", gr.GR, "gradient", "clean images, and a small gradient of the loss for them",
           "Ross & Doshi-Velez, AAAI 2018", "nothing", "6", gr.PRESETS),
    Method("LLR", llr.LLR, "gradient", "clean images, and a loss that is nearly linear around them",
           "Qin et al., NeurIPS 2019", "nothing", "2K + 11", llr.PRESETS),
]  # fmt: skip

METHODS: dict[str, Method] = {m.key: m for m in _METHODS}


def method(name: str) -> Method:
    """The method of that name, in any case.

    Raises:
        InputError: there is none.
    """
    if name.lower() not in METHODS:
        known = [m.name for m in METHODS.values()]
        raise InputError.of("method", name, "one of " + ", ".join(known), did_you_mean(name, known))
    return METHODS[name.lower()]
