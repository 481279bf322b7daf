"""What job=linear does by each protocol, with what engine/jobs/linear.py opens; each gives a record for linear.json, at rank 0."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.passes import orders
from datasets.strata import share_of_each, so_many_of_each
from engine.jobs.linear import print_of
from engine.probing.chosen import Chosen, best_rate, best_strength
from engine.probing.heads import Head, Heads
from engine.probing.logistic import MOST_ITERATIONS
from engine.probing.published import DEVIATION, Course, Published
from engine.probing.rate_grid import train_grid
from engine.probing.rows import Rows, Standard, readable, standard_of
from engine.probing.saved import SavedProbe
from engine.probing.score import Score, score
from engine.probing.tellers import SAY_SECONDS, Pace, Tell
from engine.probing.words import asked_text, by_class, lacking_text, left_out_text
from engine.ranks.alone import first_alone
from engine.ranks.process_table import peak_resident_bytes
from engine.results.progress import progress

if TYPE_CHECKING:
    from engine.jobs.linear import LinearJob
    from engine.probing.feature_cache import FeatureCache

# Fixed, so that every probe holds out the same images.
_HELD_OUT_KEY, _FEW_KEY = 20207, 20208


class _Trained:
    """Cached features of the images that are trained on, cut into those that a classifier is fitted to and those that are held out."""

    def __init__(self, job: "LinearJob", features_MD: np.ndarray) -> None:
        part = job.parts.train
        self.classes_M, self.instances_M = part.classes_M, part.instances_M
        there = np.flatnonzero(readable(features_MD))
        if not len(there):
            raise ValueError(
                f"none of the {len(features_MD)} images of {part.source.name} that would be trained on can be read and has finite features"
            )
        aside = share_of_each(self.classes_M[there], self.instances_M[there], job.config.linear.held_out, _HELD_OUT_KEY)
        self.fitted, self.held = there[~aside], there[aside]
        self.missing = len(features_MD) - len(there)
        if not len(self.held):
            raise ValueError(
                f"linear.held_out is {job.config.linear.held_out:g}, which sets aside none of {len(there)} readable images; raise it"
            )
        self.standard = standard_of(features_MD, self.fitted, job.ranks.device)
        self.rows = Rows(features_MD, self.standard, job.ranks.device)

    def few(self, asked: float) -> np.ndarray:
        """The rows with few labels that an entry of linear.few asks for; at least one of each class."""
        labels, ids = self.classes_M[self.fitted], self.instances_M[self.fitted]
        if asked >= 1:
            return self.fitted[so_many_of_each(labels, ids, int(asked), _FEW_KEY)]
        return self.fitted[share_of_each(labels, ids, asked, _FEW_KEY, least=1)]


class _Tested:
    """Cached features of the images that are tested."""

    def __init__(self, job: "LinearJob", features_MD: np.ndarray) -> None:
        self._features_MD, self._classes_M, self._device = features_MD, job.parts.test.classes_M, job.ranks.device
        self.there = np.flatnonzero(readable(features_MD))
        if not len(self.there):
            raise ValueError(
                f"none of the {len(features_MD)} images of {job.parts.test.source.name} that are tested can be read and has finite features"
            )

    def score(self, head: Head, standard: Standard) -> Score:
        return score(head, Rows(self._features_MD, standard, self._device), self._classes_M, self.there)


def by_features(job: "LinearJob") -> dict[str, Any] | None:
    """A grid of learning rates and logistic regression on cached features; few labels."""
    train, test = job.cache("train", job.parts.train), job.cache("test", job.parts.test)
    streams = [job.images(job.parts.train, train), job.images(job.parts.test, test)]
    for cache, stream in zip((train, test), streams, strict=True):
        cache.fill(stream, job.trunk, print)
    with first_alone(job.ranks) as is_alone:
        return _on_features(job, train, test) if is_alone else None


def _on_features(job: "LinearJob", train: "FeatureCache", test: "FeatureCache") -> dict[str, Any]:
    """What rank 0 does when all features are there."""
    trained, tested = _Trained(job, train.features_MD), _Tested(job, test.features_MD)
    asked = job.config.linear
    chosen = [_sgd(job, trained)] if asked.rates else []
    chosen += [_logistic(job, trained, "logistic-0", trained.fitted, asked.C)] if asked.C else []
    scores = {one.name: tested.score(one.head, trained.standard) for one in chosen}
    few = enumerate(asked.few if _strengths_of_few(job) else (), 1)
    few_labels = [_few_labels(job, trained, tested, number, labels) for number, labels in few]
    _save(job, "features", {one.name: (one.head, trained.standard) for one in chosen})
    how = (
        f"features standardised; {len(trained.fitted)} images fitted, {len(trained.held)} held out, by which rate and C are chosen"
        + f"; SGD: {asked.epochs} epochs, batch {asked.batch}" * bool(asked.rates)
        + left_out_text("trained on", trained.missing, len(job.parts.train))
        + lacking_text(trained.classes_M[trained.fitted], len(job.parts.labels_C))
    )
    return {
        **_about(job, "features", tested, how),
        "unreadable_trained": trained.missing,
        "fitted_images": len(trained.fitted),
        "held_out_images": len(trained.held),
        "heads": [one.record(scores[one.name]) for one in chosen],
        "few_labels": few_labels,
        "per_class": by_class(job.parts.labels_C, job.parts.example, scores),
    }


def _sgd(job: "LinearJob", trained: _Trained) -> Chosen:
    asked, fitted = job.config.linear, trained.fitted
    rates, total = sorted(asked.rates), asked.epochs * -(-len(fitted) // asked.batch)
    heads = train_grid(
        trained.rows,
        trained.classes_M,
        fitted,
        rates,
        classes=len(job.parts.labels_C),
        epochs=asked.epochs,
        batch=asked.batch,
        order=orders(job.config.seed, len(fitted)),
        kept=job.kept("grid", rates, asked.epochs, asked.batch, print_of(fitted)),
        tell=job.told_by_time(total),
    )
    return best_rate(heads, rates, trained.rows, trained.classes_M, trained.held)


def _logistic(job: "LinearJob", trained: _Trained, name: str, ids_n: np.ndarray, asked: Sequence[float]) -> Chosen:
    strengths = sorted(asked)
    print(f"logistic regression on {len(ids_n):,} images, C {', '.join(f'{C:g}' for C in strengths)}", flush=True)
    kept = job.kept(name, strengths, print_of(ids_n), print_of(trained.fitted))
    classes = len(job.parts.labels_C)
    return best_strength(trained.rows, trained.classes_M, ids_n, trained.held, strengths, classes, kept, _searched())


def _searched() -> Tell:
    """Hears the iterations of a logistic regression, and says one every few seconds."""
    pace = Pace(SAY_SECONDS)

    def tell(iteration: int, figures: Mapping[str, float]) -> None:
        if pace.is_due():
            print(
                f"C {figures['C']:g}: iteration {iteration}, at most {MOST_ITERATIONS}, loss {figures['loss']:.4f}",
                flush=True,
            )

    return tell


def _strengths_of_few(job: "LinearJob") -> Sequence[float]:
    asked = job.config.linear
    return asked.C if asked.few_C is None else asked.few_C


def _few_labels(job: "LinearJob", trained: _Trained, tested: _Tested, number: int, asked: float) -> dict[str, Any]:
    ids_n = trained.few(asked)
    chosen = _logistic(job, trained, f"logistic-{number}", ids_n, _strengths_of_few(job))
    record = chosen.record(tested.score(chosen.head, trained.standard))
    return {"asked": asked, "what": asked_text(asked), "images": len(ids_n), **record}


def by_published(job: "LinearJob") -> dict[str, Any] | None:
    """One classifier on views that go through the network in every step."""
    asked, parts, ranks = job.config.linear, job.parts, job.ranks
    channels = parts.train.source.channels
    total = asked.epochs * -(-len(parts.train) // asked.batch)
    labels_N = np.full(len(parts.train.source), -1)
    labels_N[parts.train.instances_M] = parts.train.classes_M
    width = job.trunk.width(channels, job.config.data.image_size)
    heads = Heads(1, width, len(parts.labels_C), ranks.device, deviation=DEVIATION, seed=job.config.seed)
    course = Course(total, total // asked.epochs, asked.lr, asked.weight_decay, job.config.log_every)
    settings = [asked.epochs, asked.batch, asked.lr, asked.weight_decay, asked.crop, asked.flip]
    kept = job.kept("published", *settings)
    probe = Published(job.trunk, heads, labels_N, course, kept, ranks)
    test = job.cache("test", parts.test)
    views, images = job.views(probe.first_step, total), job.images(parts.test, test)
    with progress(
        total_steps=total, first_step=probe.first_step, chance_loss=math.log(len(parts.labels_C)), planned_bytes={}
    ) as shown:
        probe.train(views, _told(job, shown.update))
    test.fill(images, job.trunk, print)
    if not ranks.is_first:
        return None
    tested, standard, head = _Tested(job, test.features_MD), Standard.none(width, ranks.device), heads.head(0)
    scores = {"published": tested.score(head, standard)}
    _save(job, "published", {"published": (head, standard)})
    found = {"name": "published", "lr": asked.lr, **scores["published"].figures(), "is_finite": head.is_finite}
    how = (
        f"views of {asked.crop[0]:g} to {asked.crop[1]:g} of an image, mirrored with probability {asked.flip:g}; {asked.epochs} epochs, "
        f"batch {asked.batch}, weight decay {asked.weight_decay:g}, rate by a cosine"
        + left_out_text("trained on", len(probe.unreadable), len(parts.train))
        + lacking_text(labels_N[np.setdiff1d(parts.train.instances_M, list(probe.unreadable))], len(parts.labels_C))
    )
    return {
        **_about(job, "published", tested, how),
        "unreadable_trained": len(probe.unreadable),
        "heads": [found],
        "per_class": by_class(parts.labels_C, parts.example, scores),
    }


def _told(job: "LinearJob", show: Callable[[Mapping[str, Any]], None]) -> Tell:
    """Hears what engine/probing/published.py tells, for terminal and TensorBoard."""

    def tell(step: int, figures: Mapping[str, float]) -> None:
        speed = figures["images"] / figures["seconds"]
        job.tell_board(step, {"loss": figures["loss"], "lr": figures["lr"], "images_per_second": speed})
        line: dict[str, Any] = {"step": step, "loss": figures["loss"], "images_per_second": speed}
        line |= {"interval_seconds": figures["seconds"], "seconds": {"data": figures["waited"]}}
        show({**line, "bytes": {"host": peak_resident_bytes()}})

    return tell


def test_again(job: "LinearJob") -> dict[str, Any] | None:
    """The classifiers of a saved probe on the images that are tested; nothing is trained."""
    probe = job.probe
    assert probe is not None
    if probe.digest != job.trunk.digest or probe.network not in (None, job.network):
        raise ValueError(
            f"linear.probe {job.config.linear.probe} was trained on another network than {job.name}, or on other features; "
            "set backbone, evaluate.backbone, evaluate.statistics and evaluate.features as they were"
        )
    if probe.network is None and job.config.evaluate.statistics:
        raise ValueError(
            f"linear.probe {job.config.linear.probe} is of an earlier version, which did not know evaluate.statistics; set it to null"
        )
    if probe.image_size != job.config.data.image_size:
        raise ValueError(
            f"linear.probe {job.config.linear.probe} was trained at data.image_size {probe.image_size}; set it as it was"
        )
    test = job.cache("test", job.parts.test)
    test.fill(job.images(job.parts.test, test), job.trunk, print)
    if not job.ranks.is_first:
        return None
    tested = _Tested(job, test.features_MD)
    scores = {name: tested.score(*saved) for name, saved in probe.heads.items()}
    unknown = "; it is of an earlier version: names of classes, normalisation and the images that it was trained on are not checked"
    how = f"the probe {job.config.linear.probe}, not trained again" + unknown * (probe.network is None)
    return {
        **_about(job, "tested_again", tested, how),
        "heads": [{"name": name, **one.figures()} for name, one in scores.items()],
        "per_class": by_class(job.parts.labels_C, job.parts.example, scores),
    }


def _save(job: "LinearJob", name: str, heads: dict[str, tuple[Head, Standard]]) -> None:
    probe = SavedProbe(heads, *job.parts.classes(), job.trunk.digest, job.network, job.config.data.image_size)
    probe.write(job.own.enter(f"linear/heads-{name}.safetensors"))


def _about(job: "LinearJob", kind: str, tested: _Tested, how: str) -> dict[str, Any]:
    """What every record says. trunk: the digest of the network's weights, which was the same before and after; network: of all of it."""
    words = f"tested on {job.parts.tested_on}" if job.probe else job.parts.words
    how += left_out_text("tested", len(job.parts.test) - len(tested.there), len(job.parts.test))
    return {
        "kind": kind,
        "backbone": job.name,
        "steps": job.steps,
        "features": job.config.evaluate.features,
        "trunk": job.trunk.digest,
        "network": job.network,
        "source": job.prints,
        "classes": len(job.parts.labels_C),
        "chance": 1 / len(job.parts.labels_C),
        "tested_images": len(tested.there),
        "unreadable_tested": len(job.parts.test) - len(tested.there),
        "protocol": f"{words}; {how}",
    }


PROTOCOLS = {"features": by_features, "published": by_published}
