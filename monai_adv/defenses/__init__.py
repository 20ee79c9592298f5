"""Defense: turns a clean batch into a training loss, and keeps its own state."""

from monai_adv.defenses.arfl import ARFL, ARFLSettings
from monai_adv.defenses.ates import ATES, ATESSettings
from monai_adv.defenses.base import Batch, Defense, LossPart
from monai_adv.defenses.cat import CAT, CATSettings
from monai_adv.defenses.customized_at import CustomizedAT, CustomizedATSettings
from monai_adv.defenses.dat import DAT, DATSettings
from monai_adv.defenses.dsbn import DSBN, DSBNSettings
from monai_adv.defenses.dual import Dual, DualSettings
from monai_adv.defenses.fat import FAT, FATSettings
from monai_adv.defenses.fgsm_rs import FGSMRS, FGSMRSSettings
from monai_adv.defenses.fgsm_sdi import FGSMSDI, FGSMSDISettings
from monai_adv.defenses.free_at import FreeAT, FreeATSettings
from monai_adv.defenses.gairat import GAIRAT, GAIRATSettings
from monai_adv.defenses.gr import GR, GRSettings
from monai_adv.defenses.iaat import IAAT, IAATSettings
from monai_adv.defenses.ima import IMA, IMASettings
from monai_adv.defenses.lbgat import LBGAT, LBGATSettings
from monai_adv.defenses.llr import LLR, LLRSettings
from monai_adv.defenses.mart import MART, MARTSettings
from monai_adv.defenses.mirst import MIRST, MIRSTSettings
from monai_adv.defenses.mma import MMA, MMASettings
from monai_adv.defenses.registry import METHODS, Method, method
from monai_adv.defenses.rst import RST, RSTSettings
from monai_adv.defenses.sat import SAT, SATSettings
from monai_adv.defenses.standard import Standard
from monai_adv.defenses.te import TE, TESettings
from monai_adv.defenses.trades import TRADES, TRADESSettings

__all__ = [
    "ARFL",
    "ATES",
    "CAT",
    "DAT",
    "DSBN",
    "FAT",
    "FGSMRS",
    "FGSMSDI",
    "GAIRAT",
    "GR",
    "IAAT",
    "IMA",
    "LBGAT",
    "LLR",
    "MART",
    "METHODS",
    "MIRST",
    "MMA",
    "RST",
    "SAT",
    "TE",
    "TRADES",
    "ARFLSettings",
    "ATESSettings",
    "Batch",
    "CATSettings",
    "CustomizedAT",
    "CustomizedATSettings",
    "DATSettings",
    "DSBNSettings",
    "Defense",
    "Dual",
    "DualSettings",
    "FATSettings",
    "FGSMRSSettings",
    "FGSMSDISettings",
    "FreeAT",
    "FreeATSettings",
    "GAIRATSettings",
    "GRSettings",
    "IAATSettings",
    "IMASettings",
    "LBGATSettings",
    "LLRSettings",
    "LossPart",
    "MARTSettings",
    "MIRSTSettings",
    "MMASettings",
    "Method",
    "RSTSettings",
    "SATSettings",
    "Standard",
    "TESettings",
    "TRADESSettings",
    "method",
]
