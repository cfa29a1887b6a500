"""The bill of materials of a student in SPDX 3.0.1, with its AI and Dataset profiles."""

import io
from typing import Any

from spdx_python_model import v3_0_1 as spdx

from cluster.bom import LIMITATION, document_id, hyperparameters, metrics
from cluster.cards import sampling_words, source_words
from cluster.release_facts import ReleaseFacts, public_name
from configs.terms.records import Role, Source

NO_ASSERTION = "https://spdx.org/rdf/3.0.1/terms/Core/NoAssertion"


class Bom:
    """The objects of one document; all have its namespace and its creation."""

    def __init__(self, facts: ReleaseFacts, namespace: str) -> None:
        self.objects = spdx.SHACLObjectSet()
        self._namespace, self._relations = namespace, 0
        self._creation = spdx.CreationInfo(specVersion="3.0.1", created=facts.created)
        self.program = self.add(spdx.SoftwareAgent, "program", name=facts.program)
        self._creation.createdBy.append(self.program)

    def add(self, kind: Any, place: str, **fields: Any) -> Any:
        """Add an element under a name of the document's own."""
        return self.objects.add(kind(_id=self._namespace + place, creationInfo=self._creation, **fields))

    def relate(self, start: Any, kind: str, ends: list[Any]) -> None:
        """Say what one element is to others."""
        self._relations += 1
        place, relation = f"relation-{self._relations}", getattr(spdx.RelationshipType, kind)
        self.add(spdx.Relationship, place, from_=start, relationshipType=relation, to=ends)

    def close(self, name: str, root: Any) -> bytes:
        """The document around everything that was added, as JSON-LD."""
        elements = [each for each in self.objects.foreach() if isinstance(each, spdx.Element)]
        bom = self.add(spdx.software_Sbom, "bom", software_sbomType=[spdx.software_SbomType.build], rootElement=[root])
        bom.element = elements
        profiles = spdx.ProfileIdentifierType
        conforms = [profiles.core, profiles.software, profiles.ai, profiles.dataset, profiles.simpleLicensing]
        self.add(spdx.SpdxDocument, "document", name=name, rootElement=[bom], profileConformance=conforms)
        file = io.BytesIO()
        spdx.JSONLDSerializer(indent=1, sort_keys=True).write(self.objects, file, force_at_graph=True)
        return file.getvalue() + b"\n"


def spdx_bom(facts: ReleaseFacts, weights: dict[str, str]) -> bytes:
    """The document as JSON-LD; ``weights`` are the weight files with their SHA-256."""
    bom = Bom(facts, f"urn:uuid:{document_id(facts, weights)}#")
    student, data = _add_student(bom, facts), _add_data(bom, facts)
    bom.relate(student, "trainedOn", [data])
    for place, license_, whose in (
        ("student-license", facts.student_license, student),
        ("data-license", facts.data_license, data),
    ):
        if license_.spdx is not None:
            said = bom.add(
                spdx.simplelicensing_LicenseExpression, place, simplelicensing_licenseExpression=license_.spdx
            )
            bom.relate(whose, "hasConcludedLicense", [said])
    if weights:
        bom.relate(student, "contains", [_add_file(bom, *each) for each in weights.items()])
    for number, source in enumerate(facts.decision.sources):
        made_from = _add_source(bom, number, source)
        if source.role is Role.STUDENT:
            bom.relate(student, "descendantOf", [made_from])
        else:
            bom.relate(data, "hasInput", [made_from])
    return bom.close(facts.name, student)


def _add_student(bom: Bom, facts: ReleaseFacts) -> Any:
    return bom.add(
        spdx.ai_AIPackage,
        "student",
        name=facts.name,
        builtTime=facts.created,
        suppliedBy=bom.program,
        software_packageVersion=facts.version,
        software_downloadLocation=NO_ASSERTION,
        software_primaryPurpose=spdx.software_SoftwarePurpose.model,
        ai_typeOfModel=["transformer", "language model"],
        ai_informationAboutTraining=f"Sequence-level distillation; sampling: {sampling_words(facts.config)}",
        ai_limitation=LIMITATION,
        ai_metric=_entries(metrics(facts)),
        ai_hyperparameter=_entries(hyperparameters(facts)),
    )


def _add_data(bom: Bom, facts: ReleaseFacts) -> Any:
    return bom.add(
        spdx.dataset_DatasetPackage,
        "data",
        name=f"{facts.name}: prompts and completions",
        builtTime=facts.created,
        originatedBy=[bom.program],
        software_packageVersion=str(facts.manifest["version"]),
        software_downloadLocation=NO_ASSERTION,
        software_primaryPurpose=spdx.software_SoftwarePurpose.data,
        dataset_datasetType=[spdx.dataset_DatasetType.text],
        dataset_datasetSize=facts.manifest["ledger"]["planned"],
        dataset_dataCollectionProcess=f"Written by the teachers; sampling: {sampling_words(facts.config)}",
        dataset_dataPreprocessing=["Rows that the recipe's acceptance refuses are marked and not trained on"],
    )


def _add_file(bom: Bom, path: str, digest: str) -> Any:
    checked = spdx.Hash(algorithm=spdx.HashAlgorithm.sha256, hashValue=digest)
    return bom.add(spdx.software_File, f"file/{path}", name=path, verifiedUsing=[checked])


def _add_source(bom: Bom, number: int, source: Source) -> Any:
    fields: dict[str, Any] = {"name": public_name(source), "comment": source_words(source)}
    if source.revision is not None:
        fields["software_packageVersion"] = source.revision
    if source.role is Role.PROMPTS:
        kinds = [spdx.dataset_DatasetType.text]
        return bom.add(spdx.dataset_DatasetPackage, f"source-{number}", dataset_datasetType=kinds, **fields)
    if source.role is Role.SERVICE:
        return bom.add(spdx.software_Package, f"source-{number}", **fields)
    return bom.add(spdx.ai_AIPackage, f"source-{number}", **fields)


def _entries(pairs: list[tuple[str, str]]) -> list[Any]:
    return [spdx.DictionaryEntry(key=key, value=value) for key, value in pairs]
