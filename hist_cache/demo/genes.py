"""Gene expression of a generated section, in programmes: groups of genes that depend on the same parts of the tissue.

Some programmes depend on the tissue in the 55 um spot. Some depend on the ring of neighbours around it, which a niche
crop shows and a spot crop does not. Other genes depend on nothing, so they cannot be predicted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from hist_cache.demo.tissue import FAT, GRID_PX, IMMUNE, NUCLEI, REGIONS, STROMA, TUMOUR, Tissue

RING_UM = (35.0, 130.0)  # distances from the centre of a spot: ring 1 without the spot itself
FAR_UM = (130.0, 230.0)  # distances from the centre of a spot: ring 2

# Programme -> weights of the drivers (see `drivers`) in units of the natural logarithm, and names of the genes.
PROGRAMMES: dict[str, tuple[dict[str, float], str]] = {
    "epithelial": (
        {"tumour_nuclei": 2.6, "fat": -0.8},
        "EPCAM KRT7 KRT8 KRT18 KRT19 CDH1 ERBB2 GRB7 STARD3 MUC1 CLDN3 CLDN4 CLDN7 ELF3 TACSTD2 ESRP1 "
        "RAB25 SPINT1 SPINT2 AGR2 TFF3 GATA3 FOXA1 XBP1 SCD FASN CD24 LSR ERBB3 PERP",
    ),
    "fibrous": (
        {"stroma": 2.2, "fat": 0.6},
        "COL1A1 COL1A2 COL3A1 COL5A1 COL5A2 COL6A1 COL6A2 COL6A3 DCN LUM FBLN1 FBLN2 SPARC BGN MMP2 TIMP1 "
        "TIMP3 THY1 PDGFRA PDGFRB ELN FBN1 LOX MFAP4 MFAP5 OGN SFRP2 CTSK AEBP1 PCOLCE",
    ),
    "lymphoid": (
        {"immune_nuclei": 2.8, "fat": -0.4},
        "PTPRC CD3D CD3E CD3G CD2 CD4 CD8A CD19 MS4A1 CD79A CD79B CD37 CD52 CD53 CD74 CORO1A LTB IL7R CCR7 "
        "SELL TRAC TRBC2 IGKC IGHM IGHG1 LCK LAPTM5 ARHGDIB TRAF3IP3 RAC2",
    ),
    "adipose": (
        {"fat": 2.6},
        "ADIPOQ PLIN1 PLIN4 FABP4 LPL CIDEA CIDEC LEP G0S2 CD36 PCK1 AQP7 GPD1 ADIRF SAA1 CFD TRARG1 LIPE DGAT2 PNPLA2",
    ),
    "proliferating": (
        {"nuclei": 2.2},
        "MKI67 TOP2A PCNA MCM2 MCM3 MCM5 TYMS RRM2 CCNB1 CCNB2 CDK1 BIRC5 UBE2C STMN1 TUBA1B TUBB HMGB2 "
        "H2AZ1 HMGN2 CKS1B",
    ),
    "interferon": (
        {"ring_immune": 5.2, "immune_nuclei": 0.4},
        "STAT1 IRF1 IRF7 CXCL9 CXCL10 CXCL11 IDO1 GBP1 GBP2 GBP4 GBP5 ISG15 IFI6 IFI27 IFI35 IFI44L IFIT1 "
        "IFIT3 MX1 OAS1 PSMB8 PSMB9 TAP1 B2M HLA-A HLA-B HLA-C HLA-E WARS1 UBE2L6",
    ),
    "invasive_front": (
        {"ring_tumour": 3.0, "stroma": 1.4},
        "FN1 POSTN MMP11 MMP14 FAP INHBA COL10A1 COL11A1 COL12A1 CTHRC1 LRRC15 SULF1 COMP GREM1 VCAN TNC "
        "THBS2 ASPN ADAM12 ITGA11 LAMC2 LAMB3 SERPINE1 TGFBI SPHK1",
    ),
    "nest_core": (
        {"ring_tumour": 2.6, "far_tumour": 1.4},
        "CA9 VEGFA ADM NDRG1 SLC2A1 HK2 LDHA PGK1 ENO1 ALDOA BNIP3 EGLN3 ANKRD37 PFKFB3 PFKFB4 P4HA1 DDIT4 "
        "ANGPTL4 KDM3A MXI1 ERO1A TPI1 GAPDH PKM BHLHE40",
    ),
    "metabolic_niche": (
        {"ring_fat": 4.2},
        "FABP5 ACSL1 ACSL4 CPT1A CPT1B PPARG PPARA LPIN1 APOE APOC1 APOD LIPA ABCA1 ABCG1 SCARB1 VLDLR "
        "MGLL MGST1 ADH1B AKR1C1 AKR1C2 MT1X MT2A GPX3 CAV1",
    ),
    "vascular_niche": (
        {"ring_stroma": 3.0, "far_tumour": -1.0},
        "PECAM1 VWF CDH5 ENG KDR FLT1 TEK TIE1 ESAM CLDN5 EMCN PLVAP RAMP2 RAMP3 AQP1 EGFL7 ROBO4 MMRN2 ECSCR SOX17",
    ),
}
MITOCHONDRIAL = "ND1 ND2 ND3 ND4 ND4L ND5 ND6 CO1 CO2 CO3 ATP6 ATP8 CYB"
N_RIBOSOMAL, N_FLAT, N_RARE = 12, 60, 60  # genes of no programme: with many, some and almost no counts


def demo_genes() -> list[str]:
    """List the symbols of the 400 genes, the same for every slide."""
    genes = [g for _, names in PROGRAMMES.values() for g in names.split()]
    genes += [f"MT-{g}" for g in MITOCHONDRIAL.split()] + [f"RPL{i + 3}" for i in range(N_RIBOSOMAL)]
    return genes + [f"LINC{i:05d}" for i in range(101, 101 + N_FLAT + N_RARE)]


def composition(
    tissue: Tissue, coords: NDArray[np.float64], inner_um: float, outer_um: float, um_per_px: float
) -> NDArray[np.float64]:
    """Compute which regions there are between two distances from each spot; the area outside the slide is background.

    Args:
        tissue: The section.
        coords: (N, 2) spot centres in px, x then y.
        inner_um: The smaller distance.
        outer_um: The larger distance.
        um_per_px: Pixel size.

    Returns:
        (N, 5) share of each of `REGIONS`, 0 to 1.
    """
    reach = int(np.ceil(outer_um / um_per_px / GRID_PX)) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance = np.hypot(x, y) * GRID_PX * um_per_px
    keep = (distance >= inner_um) & (distance < outer_um)
    cells = (np.round(coords / GRID_PX - 0.5).astype(int) + reach)[:, ::-1, None]
    padded = np.pad(tissue.regions, reach)
    cells = np.clip(cells, reach, np.array(padded.shape)[:, None] - reach - 1)
    values = padded[cells[:, 0] + y[keep], cells[:, 1] + x[keep]]
    return np.stack([(values == r).mean(axis=1) for r in range(len(REGIONS))], axis=1)


def nuclei_in_spots(tissue: Tissue, coords: NDArray[np.float64], radius_px: float) -> dict[int, NDArray[np.float64]]:
    """Count the nuclei within a radius of each spot.

    Args:
        tissue: The section.
        coords: (N, 2) spot centres in px, x then y.
        radius_px: The radius.

    Returns:
        Kind of nucleus -> (N,) counts.
    """
    counts = {}
    for kind in NUCLEI:
        tree = cKDTree(tissue.nuclei[tissue.kinds == kind])
        counts[kind] = tree.query_ball_point(coords, radius_px, return_length=True).astype(np.float64)
    return counts


def drivers(
    tissue: Tissue, coords: NDArray[np.float64], spot_um: float, um_per_px: float
) -> dict[str, NDArray[np.float64]]:
    """Compute the properties of the tissue at each spot that drive the programmes.

    Args:
        tissue: The section.
        coords: (N, 2) spot centres in px, x then y.
        spot_um: Diameter of a spot.
        um_per_px: Pixel size.

    Returns:
        Driver -> (N,) values of about 0 to 1.
    """
    spot = composition(tissue, coords, 0, spot_um / 2, um_per_px)
    ring = composition(tissue, coords, *RING_UM, um_per_px)
    far = composition(tissue, coords, *FAR_UM, um_per_px)
    nuclei = nuclei_in_spots(tissue, coords, spot_um / 2 / um_per_px)
    # Divide by the number of nuclei in a spot where nuclei of this kind are densest.
    area = np.pi * spot_um**2 / 4
    packing = {kind: n / (area / (0.866 * NUCLEI[kind][0] ** 2)) for kind, n in nuclei.items()}
    return {
        "tumour_nuclei": packing[TUMOUR],
        "immune_nuclei": packing[IMMUNE],
        "nuclei": packing[TUMOUR] + 0.8 * packing[IMMUNE] + 0.3 * packing[STROMA],
        "stroma": spot[:, STROMA],
        "fat": spot[:, FAT],
        "ring_tumour": ring[:, TUMOUR],
        "ring_immune": ring[:, IMMUNE],
        "ring_stroma": ring[:, STROMA],
        "ring_fat": ring[:, FAT],
        "far_tumour": far[:, TUMOUR],
    }


def draw_counts(
    drivers: dict[str, NDArray[np.float64]], seed: int, slide_rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw the counts of all genes at all spots of a slide.

    Args:
        drivers: Driver -> (N,) values.
        seed: Seed of the genes' properties. They are the same for all slides, so that a model can learn them.
        slide_rng: Generator of the slide's noise: batch effect of each gene, library size of each spot, and negative
            binomial counts.

    Returns:
        (N, G) counts, genes in the order of `demo_genes`.
    """
    gene_rng = np.random.default_rng([seed, 1])
    n = len(drivers["fat"])
    log_effects, level = [], []
    for weights, names in PROGRAMMES.values():
        for _ in names.split():
            strength = gene_rng.uniform(0.55, 1.15)
            effect = sum(w * strength * gene_rng.uniform(0.8, 1.2) * drivers[d] for d, w in weights.items())
            log_effects.append(effect + gene_rng.normal(0, 0.15) * drivers["nuclei"])
            level.append(gene_rng.normal(np.log(10.5), 0.55))
    other_weights = gene_rng.normal(0, 0.1, len(demo_genes()) - len(log_effects))
    log_effects += [weight * drivers["nuclei"] for weight in other_weights]
    n_mitochondrial = len(MITOCHONDRIAL.split())
    # Mean count, spread of its logarithm, and number of genes, for each kind of gene outside the programmes.
    other_kinds = ((60, 0.5, n_mitochondrial), (40, 0.4, N_RIBOSOMAL), (6, 0.5, N_FLAT), (0.15, 0.7, N_RARE))
    for mean, spread, number in other_kinds:
        level += list(gene_rng.normal(np.log(mean), spread, number))
    n_genes = len(level)

    # A spot with more nuclei has more RNA; fat and stroma without cells have little.
    library = 0.35 + 0.65 * np.clip(drivers["nuclei"], 0, 1)
    library = library * np.exp(slide_rng.normal(0, 0.25, n) + slide_rng.normal(0, 0.08))
    batch = slide_rng.normal(0, 0.12, n_genes)
    rate = np.exp(np.stack(log_effects, axis=1) + np.array(level) + batch) * library[:, None]
    dispersion = 0.2  # variance = rate + 0.2 rate^2
    counts: NDArray[np.int64] = slide_rng.poisson(rate * slide_rng.gamma(1 / dispersion, dispersion, rate.shape))
    return counts
