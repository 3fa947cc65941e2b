"""The cephalometric landmarks, and the depths of soft tissue between them."""

# In the order of the ISBI challenge's annotations.
LANDMARKS = (
    "sella",
    "nasion",
    "orbitale",
    "porion",
    "a_point",
    "b_point",
    "pogonion",
    "menton",
    "gnathion",
    "gonion",
    "lower_incisor",
    "upper_incisor",
    "upper_lip",
    "lower_lip",
    "subnasale",
    "soft_pogonion",
    "pns",
    "ans",
    "articulare",
)
SOFT = ("upper_lip", "lower_lip", "subnasale", "soft_pogonion")
BONE = tuple(name for name in LANDMARKS if name not in SOFT)

# A depth runs from the first landmark, on bone, to the second, on skin.
DEPTHS = {
    "A point": ("a_point", "subnasale"),
    "upper lip": ("upper_incisor", "upper_lip"),
    "lower lip": ("lower_incisor", "lower_lip"),
    "chin": ("pogonion", "soft_pogonion"),
}
# Landmarks at the bottom of a corner of the profile: there the profile is nearest to the bone.
CORNERS = ("subnasale",)
