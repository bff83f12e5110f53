"""First schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "annotator",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_annotator")),
        sa.UniqueConstraint("name", name=op.f("uq_annotator_name")),
    )
    op.create_table(
        "project",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("guidelines", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_project")),
        sa.UniqueConstraint("name", name=op.f("uq_project_name")),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("annotator_id", sa.Integer(), nullable=True),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=True),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["annotator_id"], ["annotator.id"], name=op.f("fk_audit_annotator_id")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_audit_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index(op.f("ix_audit_project_id_id"), "audit", ["project_id", "id"], unique=False)
    op.create_table(
        "membership",
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("annotator_id", sa.Integer(), nullable=False),
        sa.Column("role", sa.String(length=20), nullable=False),
        sa.CheckConstraint("role IN ('annotator', 'reviewer', 'admin')", name=op.f("ck_membership_role_known")),
        sa.ForeignKeyConstraint(["annotator_id"], ["annotator.id"], name=op.f("fk_membership_annotator_id")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_membership_project_id")),
        sa.PrimaryKeyConstraint("project_id", "annotator_id", name=op.f("pk_membership")),
    )
    op.create_table(
        "prompt",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("external_id", sa.String(length=200), nullable=False),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_prompt_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prompt")),
        sa.UniqueConstraint("project_id", "external_id", name=op.f("uq_prompt_project_id_external_id")),
    )
    op.create_index(op.f("ix_prompt_project_id_id"), "prompt", ["project_id", "id"], unique=False)
    op.create_table(
        "assignment",
        sa.Column("prompt_id", sa.Integer(), nullable=False),
        sa.Column("annotator_id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("draft", sa.Text(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.CheckConstraint("state IN ('open', 'ranked', 'skipped', 'flagged')", name=op.f("ck_assignment_state_known")),
        sa.CheckConstraint("revision >= 0", name=op.f("ck_assignment_revision_from_0")),
        sa.ForeignKeyConstraint(["annotator_id"], ["annotator.id"], name=op.f("fk_assignment_annotator_id")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_assignment_project_id")),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name=op.f("fk_assignment_prompt_id")),
        sa.PrimaryKeyConstraint("prompt_id", "annotator_id", name=op.f("pk_assignment")),
    )
    op.create_index(
        op.f("ix_assignment_project_id_annotator_id_prompt_id"),
        "assignment",
        ["project_id", "annotator_id", "prompt_id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_assignment_project_id_annotator_id_state"),
        "assignment",
        ["project_id", "annotator_id", "state"],
        unique=False,
    )
    op.create_table(
        "ranking",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("prompt_id", sa.Integer(), nullable=False),
        sa.Column("annotator_id", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("bar", sa.Integer(), nullable=True),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("source", sa.String(length=20), nullable=False),
        sa.Column("client_key", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("bar IS NULL OR (bar >= 0 AND status = 'ranked')", name=op.f("ck_ranking_bar_of_a_ranking")),
        sa.CheckConstraint("source IN ('page', 'import', 'undo')", name=op.f("ck_ranking_source_known")),
        sa.CheckConstraint(
            "status IN ('ranked', 'skipped', 'flagged', 'withdrawn')", name=op.f("ck_ranking_status_known")
        ),
        sa.CheckConstraint("revision >= 1", name=op.f("ck_ranking_revision_from_1")),
        sa.ForeignKeyConstraint(["annotator_id"], ["annotator.id"], name=op.f("fk_ranking_annotator_id")),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name=op.f("fk_ranking_prompt_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ranking")),
        sa.UniqueConstraint("client_key", name=op.f("uq_ranking_client_key")),
        sa.UniqueConstraint("id", "prompt_id", name=op.f("uq_ranking_id_prompt_id")),
        sa.UniqueConstraint(
            "prompt_id", "annotator_id", "revision", name=op.f("uq_ranking_prompt_id_annotator_id_revision")
        ),
    )
    op.create_index(op.f("ix_ranking_annotator_id_id"), "ranking", ["annotator_id", "id"], unique=False)
    op.create_table(
        "response",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("prompt_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=True),
        sa.Column("external_id", sa.String(length=200), nullable=True),
        sa.CheckConstraint("number >= 1", name=op.f("ck_response_number_from_1")),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name=op.f("fk_response_prompt_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_response")),
        sa.UniqueConstraint("id", "prompt_id", name=op.f("uq_response_id_prompt_id")),
        sa.UniqueConstraint("prompt_id", "number", name=op.f("uq_response_prompt_id_number")),
    )
    op.create_table(
        "rank",
        sa.Column("ranking_id", sa.Integer(), nullable=False),
        sa.Column("response_id", sa.Integer(), nullable=False),
        sa.Column("prompt_id", sa.Integer(), nullable=False),
        sa.Column("shown", sa.Integer(), nullable=True),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.CheckConstraint("rank IS NULL OR rank >= 1", name=op.f("ck_rank_rank_from_1")),
        sa.CheckConstraint("shown IS NULL OR shown >= 1", name=op.f("ck_rank_shown_from_1")),
        sa.ForeignKeyConstraint(
            ["ranking_id", "prompt_id"], ["ranking.id", "ranking.prompt_id"], name=op.f("fk_rank_ranking_id_prompt_id")
        ),
        sa.ForeignKeyConstraint(
            ["response_id", "prompt_id"],
            ["response.id", "response.prompt_id"],
            name=op.f("fk_rank_response_id_prompt_id"),
        ),
        sa.PrimaryKeyConstraint("ranking_id", "response_id", name=op.f("pk_rank")),
        sa.UniqueConstraint("ranking_id", "shown", name=op.f("uq_rank_ranking_id_shown")),
    )
