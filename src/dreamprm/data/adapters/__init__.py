"""Every file format that is read or written, by name; one file for each family of them."""

from dreamprm.data.adapters.candidates import CANDIDATES
from dreamprm.data.adapters.canonical import CANONICAL
from dreamprm.data.adapters.dreamprm import META, TRAIN
from dreamprm.data.adapters.dreamprm15 import DREAMPRM15
from dreamprm.data.adapters.format import Format
from dreamprm.data.adapters.gsm8k import GSM8K
from dreamprm.data.adapters.math_aps import MATH_APS
from dreamprm.data.adapters.math_shepherd import MATH_SHEPHERD
from dreamprm.data.adapters.math_vision import MATH_VISION
from dreamprm.data.adapters.prm800k import PRM800K
from dreamprm.data.adapters.prmbench import PRMBENCH
from dreamprm.data.adapters.processbench import PROCESSBENCH
from dreamprm.data.adapters.trl import TRL
from dreamprm.data.adapters.visualprm import VISUALPRM400K, VISUALPRM400K_RAW, VISUALPROCESSBENCH
from dreamprm.data.adapters.we_math import WE_MATH

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        CANONICAL,
        CANDIDATES,
        TRAIN,
        META,
        DREAMPRM15,
        TRL,
        PRM800K,
        MATH_SHEPHERD,
        MATH_APS,
        PROCESSBENCH,
        PRMBENCH,
        VISUALPRM400K,
        VISUALPRM400K_RAW,
        VISUALPROCESSBENCH,
        GSM8K,
        MATH_VISION,
        WE_MATH,
    )
}
