"""Edits that were made and what people thought of them, in a database (SQLite, or Postgres by URL) and a folder of pictures.

A row holds all that makes its edit again: source, instruction, scales, seed, steps, version. Pictures are files named by their
bytes. A vote is committed before it is acknowledged. The schema changes by Alembic (`migrations/`).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import uuid4

from sqlalchemy import BigInteger, Engine, ForeignKey, and_, delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from ip2p.errors import DataError
from ip2p.params import ServeParams
from ip2p.serve.database import open_database
from ip2p.store import write_bytes

log = logging.getLogger("ip2p.serve")
Reason = Literal["instruction", "preservation", "quality", "other"]
"""What a vote may be about."""
_AT_ONCE = 200
"""Most edits that go for one that comes, for want of room."""
_INSTANT = 1e-6
"""Seconds between two edits, at least."""


class UnknownEditError(DataError):
    """An edit that is not, or no longer, in the history."""


class Base(DeclarativeBase):
    """The tables."""


class EditRow(Base):
    """An edit that was made."""

    __tablename__ = "edits"
    id: Mapped[str] = mapped_column(primary_key=True)
    created: Mapped[float] = mapped_column(index=True)
    door: Mapped[str]
    version: Mapped[str]
    editor: Mapped[str | None]
    """Digest of the editor's folder: of another registry a version has the same number. None: made before this was kept."""
    instruction: Mapped[str]
    text_guidance: Mapped[float]
    image_guidance: Mapped[float]
    steps: Mapped[int]
    solver: Mapped[str]
    guidance_from: Mapped[float]
    guidance_until: Mapped[float]
    guidance_every: Mapped[int]
    seed: Mapped[int] = mapped_column(BigInteger)
    width: Mapped[int]
    height: Mapped[int]
    source: Mapped[str] = mapped_column(index=True)
    mask: Mapped[str | None] = mapped_column(index=True)
    picture: Mapped[str] = mapped_column(index=True)
    voted: Mapped[bool] = mapped_column(default=False)
    """Whether there is a vote on it, so that it stays; votes are never taken back."""


class VoteRow(Base):
    """What somebody thought of an edit, alone (`thumb`, 1 or -1) or beside another (`pair`: 1 better, 0 the same, -1 worse)."""

    __tablename__ = "votes"
    id: Mapped[str] = mapped_column(primary_key=True)
    created: Mapped[float]
    kind: Mapped[str]
    edit: Mapped[str] = mapped_column(ForeignKey("edits.id"), index=True)
    other: Mapped[str | None] = mapped_column(ForeignKey("edits.id"), index=True)
    value: Mapped[int]
    reason: Mapped[str | None]
    comment: Mapped[str]
    voter: Mapped[str]


@dataclass
class Disk:
    """Bytes that the pictures take, and may take."""

    used: int
    most: float
    voted: dict[str, int]
    """Of them the pictures of edits with a vote, which stay whatever they take, by name; votes are never taken back."""

    @property
    def spare(self) -> float:
        """Bytes that there is room for, beside the pictures of edits with a vote."""
        return self.most - self.used + sum(self.voted.values())


@dataclass(frozen=True)
class History:
    """The database and the pictures."""

    engine: Engine
    pictures: Path
    keep: int
    disk: Disk

    def picture_path(self, name: str) -> Path:
        """Where a picture of that name lies."""
        return self.pictures / name[:2] / f"{name}.png"

    def keep_picture(self, png: bytes) -> str:
        """Write a picture, once; returns its name."""
        return self._kept(png)[0]

    def _kept(self, png: bytes) -> tuple[str, bool]:
        """Write a picture, once; its name, and whether it was written now."""
        name = hashlib.sha256(png).hexdigest()
        if new := not self.picture_path(name).exists():
            write_bytes(self.picture_path(name), png)
            self.disk.used += len(png)
        return name, new

    def store(self, row: EditRow, *, source: bytes, mask: bytes | None, picture: bytes) -> None:
        """Store an edit with its pictures. Where the database does not take it, the disk has no more pictures than before."""
        new: list[str] = []

        def keep(png: bytes) -> str:
            name, written = self._kept(png)
            new.extend([name] * written)
            return name

        try:
            row.source, row.mask, row.picture = keep(source), keep(mask) if mask else None, keep(picture)
            gone = self._added(row)
        except BaseException:
            self._forget(new)
            raise
        self._forget(gone)

    def add(self, row: EditRow) -> None:
        """Store an edit whose pictures are kept. Of those without a vote all but the newest `keep` go, and the oldest for want of room."""
        self._forget(self._added(row))

    def _added(self, row: EditRow) -> set[str]:
        """Store an edit's row; the pictures that can go with those which it makes room for."""
        with self.session() as session:
            latest = session.scalar(select(func.max(EditRow.created)))
            if latest is not None:  # where the clock was set back, the newest edit is the newest still
                row.created = max(row.created, latest + _INSTANT)
            session.add(row)
            session.flush()
            gone = self._forgettable(session, row.id)
            try:
                with session.begin_nested():
                    session.execute(delete(EditRow).where(EditRow.id.in_([r.id for r in gone])))
            except IntegrityError:  # a vote on one of them came between: they go with a later edit
                gone = []
            names = {n for r in gone for n in names_of(r)}
            kept = {n for n in names if self._used(session, n)}
        return names - kept

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            self.disk.used -= self._bytes(name)
            self.picture_path(name).unlink(missing_ok=True)

    def edit(self, id: str) -> EditRow | None:
        """An edit by its id."""
        with self.session() as session:
            return session.get(EditRow, id)

    def edits(self, *, before: float | None = None, count: int = 50) -> list[EditRow]:
        """Edits, newest first, made before an instant."""
        query = select(EditRow).order_by(EditRow.created.desc()).limit(count)
        with self.session() as session:
            return list(session.scalars(query if before is None else query.where(EditRow.created < before)))

    def vote(self, *, kind: str, edit: str, other: str | None, value: int, reason: str | None, comment: str, voter: str) -> VoteRow:
        """Store a vote; it is on disk when this returns. The same voter's earlier vote on the same is replaced.

        Raises `UnknownEditError`, or `DataError` if two edits are not of one source and instruction.
        """
        try:
            return self._voted(kind=kind, edit=edit, other=other, value=value, reason=reason, comment=comment, voter=voter)
        except IntegrityError as error:  # SQLite: it was forgotten between looking and writing
            raise UnknownEditError(f"edit {edit}: not known") from error

    def _voted(self, *, kind: str, edit: str, other: str | None, value: int, reason: str | None, comment: str, voter: str) -> VoteRow:
        with self.session() as session:
            if session.get_bind().dialect.name == "postgresql":  # the same voter's votes on the same come one after the other
                key = f"{voter} {kind} {' '.join(sorted((edit, other or '')))}"
                session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(key, 0))))
            held = {"read": True, "key_share": True}  # what is voted on is not forgotten meanwhile (Postgres; SQLite has one writer)
            one, two = (session.get(EditRow, id, with_for_update=held) if id else None for id in (edit, other))
            if one is None or (other and two is None):
                raise UnknownEditError(f"edit {edit if one is None else other}: not known")
            if edit == other:
                raise DataError("an edit cannot be compared with itself")
            if two is not None and (one.source, one.instruction, one.mask) != (two.source, two.instruction, two.mask):
                raise DataError("only edits of one picture by one instruction can be compared")
            same = and_(VoteRow.edit == edit, VoteRow.other == other) | and_(VoteRow.edit == other, VoteRow.other == edit)
            session.execute(delete(VoteRow).where(VoteRow.kind == kind, same, VoteRow.voter == voter))
            row = VoteRow(
                id=uuid4().hex,
                created=time.time(),
                kind=kind,
                edit=edit,
                other=other,
                value=value,
                reason=reason,
                comment=comment,
                voter=voter,
            )
            session.add(row)
            for judged in (both := [one] if two is None else [one, two]):
                judged.voted = True
        self.disk.voted |= {n: self._bytes(n) for judged in both for n in names_of(judged)}
        return row

    def votes(self) -> list[VoteRow]:
        """All votes, oldest first."""
        with self.session() as session:
            return list(session.scalars(select(VoteRow).order_by(VoteRow.created, VoteRow.id)))

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    def _forgettable(self, session: Session, newest: str) -> list[EditRow]:
        """Of the edits without a vote, all but the newest `keep`, and the oldest others whose pictures there is no room for."""
        query = select(EditRow).where(~EditRow.voted, EditRow.id != newest).with_for_update(skip_locked=True)
        gone = list(session.scalars(query.order_by(EditRow.created.desc()).offset(self.keep - 1)))
        spare = self.disk.spare + sum(self._bytes(n) for r in gone for n in (r.mask, r.picture))
        for row in session.scalars(query.order_by(EditRow.created).limit(_AT_ONCE)) if spare < 0 else ():
            if spare >= 0:
                break
            if row not in gone:
                gone.append(row)
                spare += sum(self._bytes(n) for n in (row.mask, row.picture))  # its source may be another's, too
        return gone

    def _bytes(self, name: str | None) -> int:
        path = self.picture_path(name) if name else None
        return path.stat().st_size if path and path.exists() else 0

    def _used(self, session: Session, name: str) -> bool:
        uses = (EditRow.source == name) | (EditRow.mask == name) | (EditRow.picture == name)
        return session.scalar(select(EditRow.id).where(uses).limit(1)) is not None


def names_of(row: EditRow) -> list[str]:
    """The pictures of an edit."""
    return [name for name in (row.source, row.mask, row.picture) if name]


def open_history(section: ServeParams) -> History:
    """Open the database and count what the pictures take. Raises `DataError` if it cannot be reached."""
    engine = open_database(section)
    history = History(engine, Path(section.pictures), section.keep, Disk(0, section.keep_gb * 1e9, {}))
    sizes = {path.stem: path.stat().st_size for path in history.pictures.rglob("*.png")}
    with history.session() as session:
        every = select(EditRow.source, EditRow.mask, EditRow.picture)
        named, voted = ({n for row in session.execute(q) for n in row if n} for q in (every, every.where(EditRow.voted)))
    history.disk.used = sum(sizes[name] for name in named & sizes.keys())
    history.disk.voted.update({name: sizes[name] for name in voted & sizes.keys()})
    if unknown := sizes.keys() - named:
        told = f"{len(unknown)} pictures, {sum(sizes[n] for n in unknown) / 1e6:.0f} MB"
        log.warning("pictures of no edit in the database", extra={"folder": section.pictures, "unknown": told})
    return history
