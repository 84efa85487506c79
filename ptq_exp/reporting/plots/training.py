"""The figure of the training of the float network."""

from pathlib import Path

from ptq_exp.reporting.plots.style import BLUE, ORANGE, SMALL, WIDTH, add_axes, save, write_title


def training_curves(history: list[dict[str, float]], title: str, path: Path) -> None:
    """Loss and top-1 by epoch. Every entry of `history` is an epoch with `train_loss`, `train_top1` and one more top-1,
    of the test or validation images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 3.4))
    epochs = range(1, len(history) + 1)
    monitor = next(key for key in history[0] if key.endswith("_top1") and key != "train_top1")
    width = (WIDTH - 0.75 - 0.9 - 0.2) / 2
    loss = add_axes(figure, 0.75, 0.6, width, 2.25)
    loss.plot(epochs, [epoch["train_loss"] for epoch in history], color=BLUE, linewidth=2)
    loss.set(xlabel="epoch", ylabel="training loss (nats)")
    loss.set_ylim(bottom=0)
    top1 = add_axes(figure, 0.75 + width + 0.9, 0.6, width, 2.25)
    for key, colour in (("train_top1", BLUE), (monitor, ORANGE)):
        label = f"{key.removesuffix('_top1')} images"
        top1.plot(epochs, [epoch[key] for epoch in history], color=colour, linewidth=2, label=label)
    top1.set(xlabel="epoch", ylabel="top-1 accuracy (%)")
    top1.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=SMALL, frameon=False)  # above the curves
    for axes in (loss, top1):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    write_title(figure, title)
    save(figure, path)
