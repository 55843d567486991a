//! Manifests as people write them, and files as they come and go.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::model::{Change, Declared, Model, Object, ObjectName, Service, ServiceName};

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  ports: [{name: http, port: 80}]
";

const API: &str = "
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec:
  clusterIP: 10.96.0.11
  ports: [{port: 80}]
";

const SLICE: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: shop
  labels: {kubernetes.io/service-name: web}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- addresses: [10.1.0.5]
  nodeName: ash
";

/// The names of what is in a file, and what is wrong with it.
fn seen(file: &str, contents: &str) -> (Vec<String>, Vec<String>) {
    let parsed = parse(file, contents);
    (parsed.objects.iter().map(|(_, stated)| name(&stated.name)).collect(), words(&parsed.problems))
}

fn name(name: &ObjectName) -> String {
    match name {
        ObjectName::Service(name) => format!("Service {name}"),
        ObjectName::Slice(name) => format!("EndpointSlice {name}"),
        ObjectName::Node(name) => format!("Node {name}"),
    }
}

fn words(problems: &[FileProblem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

fn names(changes: &[Change]) -> Vec<String> {
    let word = |change: &Change| match change {
        Change::Put(object) => format!("put {}", name(&object.name())),
        Change::Remove(gone) => format!("remove {}", name(gone)),
    };
    changes.iter().map(word).collect()
}

#[test]
fn several_documents_lists_and_other_kinds() {
    let node = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "ash"}}"#;
    let list = format!(r#"{{"apiVersion": "v1", "kind": "List", "items": [{node}, null]}}"#);
    let services = r#"{"apiVersion": "v1", "kind": "ServiceList", "items": [
        {"metadata": {"name": "db"}, "spec": {"clusterIP": "10.96.0.12", "ports": [{"port": 5432}]}}]}"#;
    let other = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n";
    let namesake = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: fn}\n";
    let table = [
        (
            "documents",
            "web.yaml",
            format!("# first\n---\n{WEB}---\n{SLICE}---\n# last\n"),
            vec!["Service shop/web", "EndpointSlice shop/web-1"],
            vec![],
        ),
        (
            "directive, end marker",
            "web.yml",
            format!("%YAML 1.2\n---\n{WEB}...\n--- # next\n{API}"),
            vec!["Service shop/web", "Service shop/api"],
            vec![],
        ),
        (
            "other kinds, other groups",
            "all.yaml",
            format!("{other}---\n{namesake}---\n{WEB}"),
            vec!["Service shop/web"],
            vec![],
        ),
        ("a list of the API", "db.json", services.to_owned(), vec!["Service default/db"], vec![]),
        (
            "two JSON values",
            "two.json",
            format!("{services}\n{node}"),
            vec!["Service default/db", "Node ash"],
            vec![],
        ),
        (
            "a list with a hole",
            "nodes.json",
            list,
            vec!["Node ash"],
            vec!["nodes.json, document 1, items[1]: is no Kubernetes object: it has no fields"],
        ),
        ("nothing", "empty.yaml", String::new(), vec![], vec![]),
    ];
    for (case, file, contents, objects, problems) in table {
        let (found, wrong) = seen(file, &contents);
        assert_eq!(found, objects, "{case}");
        assert_eq!(wrong, problems, "{case}");
    }
}

#[test]
fn a_mistake_is_named_by_file_document_object_field_and_rule() {
    let table = [
        (
            "no kind",
            "kind: \nmetadata: {name: x}".to_owned(),
            "is no Kubernetes object: `kind` must be given",
        ),
        ("no version", "kind: Service".to_owned(), "is no Kubernetes object: `apiVersion` must be given"),
        ("just text", "hello".to_owned(), "is no Kubernetes object: it has no fields"),
        (
            "an old version",
            SLICE.replace("k8s.io/v1", "k8s.io/v1beta1"),
            "`EndpointSlice` of `discovery.k8s.io/v1beta1` is not known; use `discovery.k8s.io/v1`",
        ),
        (
            "a bad value",
            WEB.replace("port: 80", "port: 0"),
            "Service shop/web: spec.ports[0].port: must be 1 to 65535, is 0",
        ),
        (
            "a bad type",
            WEB.replace("port: 80", "port: http"),
            "Service shop/web: spec.ports[0].port: invalid type: string \"http\", expected i32",
        ),
        (
            "an unknown field",
            WEB.replace("port: 80", "port: 80, nodeport: 30080"),
            "Service shop/web: spec.ports[0].nodeport: is not known, and has no effect",
        ),
        (
            "items that are no list",
            "apiVersion: v1\nkind: List\nitems: 7".to_owned(),
            "is no Kubernetes object: `items` must be a list",
        ),
    ];
    for (case, second, expected) in table {
        let (_, wrong) = seen("a.yaml", &format!("{API}---\n{second}"));
        assert_eq!(
            wrong.first().map(String::as_str),
            Some(&*format!("a.yaml, document 2: {expected}")),
            "{case}"
        );
    }
}

/// Lines are counted from the beginning of the file, and the other documents are read.
#[test]
fn a_document_that_cannot_be_read_leaves_the_others_alone() {
    let contents = format!("{WEB}---\nspec: [\n---\n{API}");
    let parsed = parse("a.yaml", &contents);
    assert!(!parsed.complete);
    assert_eq!(parsed.objects.len(), 2);
    let wrong = words(&parsed.problems);
    let line = contents.lines().position(|line| line == "spec: [").unwrap() + 1;
    assert_eq!(wrong.len(), 1);
    assert!(wrong[0].starts_with("a.yaml, document 2: cannot be read: "), "{wrong:?}");
    let near = (line..line + 3).any(|line| wrong[0].contains(&format!("line {line}")));
    assert!(near, "line {line} is named: {wrong:?}");
}

#[test]
fn json_after_a_mistake_is_not_seen() {
    let parsed = parse("a.json", "{\"apiVersion\": \"v1\", \"kind\": }\n{}");
    assert!(!parsed.complete);
    assert_eq!(words(&parsed.problems).len(), 1);
}

#[test]
fn markers_are_boundaries_only_at_the_beginning_of_a_line() {
    let text = "\n  name: web\n  annotations:\n    text: |\n      --- here\n      ---\n";
    let contents = WEB.replace("{name: web, namespace: shop}", text);
    assert_eq!(seen("a.yaml", &contents), (vec!["Service default/web".to_owned()], vec![]));
}

/// Aliases that explode are refused, large files are not.
#[test]
fn what_only_an_attack_needs_is_refused() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb += &format!("a{level}: &a{level} [{aliases}]\n");
    }
    let parsed = parse("bomb.yaml", &bomb);
    assert!(!parsed.complete && parsed.objects.is_empty(), "{:?}", parsed.problems);

    let item = |number: u32| {
        let ip = std::net::Ipv4Addr::from(0x0a60_0000 + number);
        format!("- metadata: {{name: s{number}}}\n  spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n")
    };
    let many: String = (1..=5000).map(item).collect();
    let parsed = parse("many.yaml", &format!("apiVersion: v1\nkind: ServiceList\nitems:\n{many}"));
    assert_eq!((parsed.objects.len(), words(&parsed.problems)), (5000, vec![]));
}

#[test]
fn what_is_no_longer_written_is_gone_and_what_is_the_same_is_no_change() {
    let mut folder = Folder::default();
    let both = format!("{WEB}---\n{API}");
    assert_eq!(names(&folder.put("a.yaml", &both).changes), ["put Service shop/api", "put Service shop/web"]);
    assert_eq!(folder.put("a.yaml", &both), Update::default());
    assert_eq!(names(&folder.put("a.yaml", API).changes), ["remove Service shop/web"]);
    assert_eq!(names(&folder.remove("a.yaml").changes), ["remove Service shop/api"]);
    assert_eq!(folder, Folder::default());
}

#[test]
fn a_mistake_takes_nothing_away() {
    let both = format!("{WEB}---\n{API}");
    let table = [
        ("a bad object stays as it was", both.replace("10.96.0.10", "none"), 1),
        ("two bad objects", both.replace("port: 80", "port: eighty"), 2),
        ("a document that cannot be read", format!("{{\n---\n{API}"), 1),
        ("nothing can be read", "}".to_owned(), 1),
    ];
    for (case, contents, mistakes) in table {
        let mut folder = Folder::default();
        folder.put("a.yaml", &both);
        let update = folder.put("a.yaml", &contents);
        assert_eq!(names(&update.changes), [""; 0], "{case}");
        assert_eq!(
            update.problems.iter().map(|it| it.place.document).collect::<Vec<_>>().len(),
            mistakes,
            "{case}"
        );
        let gone = names(&folder.remove("a.yaml").changes);
        assert_eq!(gone, ["remove Service shop/api", "remove Service shop/web"], "{case}");
    }
}

/// The changes next to a mistake are made.
#[test]
fn the_rest_of_a_file_with_a_mistake_is_taken_in() {
    let mut folder = Folder::default();
    folder.put("a.yaml", &format!("{WEB}---\n{API}"));
    let (bad, good) = (WEB.replace("10.96.0.10", "none"), API.replace("port: 80", "port: 81"));
    let update = folder.put("a.yaml", &format!("{bad}---\n{good}"));
    assert_eq!(names(&update.changes), ["put Service shop/api"]);
    let wrong = words(&update.problems);
    assert_eq!(wrong, ["a.yaml, document 1: Service shop/web: spec.clusterIP: `none` is no IP address"]);
}

#[test]
fn of_an_object_in_two_files_the_first_counts() {
    let mut folder = Folder::default();
    let other = WEB.replace("10.96.0.10", "10.96.0.99");
    folder.put("b.yaml", &other);
    let first = folder.put("a.yaml", WEB);
    assert_eq!(cluster_ip(&first.changes), Some("10.96.0.10".to_owned()), "a.yaml comes first");
    let again = folder.put("b.yaml", &other);
    assert_eq!(again.changes, []);
    let said = "b.yaml, document 1: Service shop/web is also in a.yaml, document 1, which counts";
    assert_eq!(words(&again.problems), [said]);
    let left = folder.remove("a.yaml");
    assert_eq!(cluster_ip(&left.changes), Some("10.96.0.99".to_owned()), "now the other one counts");
    assert_eq!(names(&folder.remove("b.yaml").changes), ["remove Service shop/web"]);

    let twice = folder.put("c.yaml", &format!("{WEB}---\n{other}"));
    assert_eq!(cluster_ip(&twice.changes), Some("10.96.0.10".to_owned()));
    let said = "c.yaml, document 2: Service shop/web is also in c.yaml, document 1, which counts";
    assert_eq!(words(&twice.problems), [said]);
}

/// Of the only service in the changes.
fn cluster_ip(changes: &[Change]) -> Option<String> {
    match changes {
        [Change::Put(Object::Service(_, Declared::Served(service)))] => {
            Some(service.cluster_ips[0].to_string())
        }
        _ => None,
    }
}

/// Long enough for the slowest machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(20);

/// Takes in what happens in the folder until the model is as wanted.
async fn until(source: &mut Source, model: &mut Model, wanted: impl Fn(&Model) -> bool) {
    let wait = async {
        while !wanted(model) {
            let update = source.next().await.expect("the folder is there");
            update.changes.into_iter().for_each(|change| drop(model.apply(change)));
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, wait).await.is_ok();
    assert!(in_time, "not in time: {model:#?}");
}

fn service<'a>(model: &'a Model, name: &str) -> Option<&'a Service> {
    model.service(&ServiceName::new("shop", name))
}

fn port(model: &Model, name: &str) -> Option<u16> {
    Some(service(model, name)?.ports[0].port)
}

/// Opens the folder as a daemon does.
fn open(path: &Path) -> (Source, Model) {
    let (source, update) = Source::open(path).expect("the folder is there");
    let mut model = Model::default();
    update.changes.into_iter().for_each(|change| drop(model.apply(change)));
    (source, model)
}

#[tokio::test]
async fn a_folder_is_followed() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path();
    fs::write(path.join("web.yaml"), WEB).unwrap();
    fs::write(path.join("README.md"), "no manifest").unwrap();
    fs::write(path.join(".hidden.yaml"), API).unwrap();
    let (mut source, mut model) = open(path);
    assert_eq!(model.services().count(), 1);

    fs::write(path.join("api.yaml"), API).unwrap();
    until(&mut source, &mut model, |model| service(model, "api").is_some()).await;

    // As an editor does: write aside, rename over.
    fs::write(path.join("web.yaml.tmp"), WEB.replace("port: 80", "port: 8000")).unwrap();
    fs::rename(path.join("web.yaml.tmp"), path.join("web.yaml")).unwrap();
    until(&mut source, &mut model, |model| port(model, "web") == Some(8000)).await;

    fs::write(path.join("web.yaml"), "kind: [").unwrap();
    fs::write(path.join("mark.yaml"), API.replace("name: api", "name: mark")).unwrap();
    until(&mut source, &mut model, |model| service(model, "mark").is_some()).await;
    assert!(service(&model, "web").is_some(), "a file that cannot be read takes nothing away");

    fs::remove_file(path.join("api.yaml")).unwrap();
    until(&mut source, &mut model, |model| service(model, "api").is_none()).await;
    fs::rename(path.join("mark.yaml"), path.join("mark.off")).unwrap();
    until(&mut source, &mut model, |model| service(model, "mark").is_none()).await;
    assert!(service(&model, "web").is_some());
}

/// A ConfigMap that is mounted: files are links through `..data`, which is exchanged.
#[tokio::test]
async fn a_mounted_config_map_is_followed() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path();
    for (version, contents) in [("..1", WEB.to_owned()), ("..2", WEB.replace("port: 80", "port: 8000"))] {
        fs::create_dir(path.join(version)).unwrap();
        fs::write(path.join(version).join("web.yaml"), contents).unwrap();
    }
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, path.join(name)).unwrap();
    link("..1", "..data");
    link("..data/web.yaml", "web.yaml");
    let (mut source, mut model) = open(path);
    assert_eq!(port(&model, "web"), Some(80));
    link("..2", "..data_tmp");
    fs::rename(path.join("..data_tmp"), path.join("..data")).unwrap();
    until(&mut source, &mut model, |model| port(model, "web") == Some(8000)).await;
}

/// A folder that goes away is an error, not the end of all services; when it is back, it is read.
#[tokio::test]
async fn a_folder_that_is_gone_takes_nothing_away() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("manifests");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("web.yaml"), WEB).unwrap();
    fs::write(path.join("api.yaml"), API).unwrap();
    let (mut source, mut model) = open(&path);
    fs::rename(&path, home.path().join("aside")).unwrap();
    let gone = tokio::time::timeout(PATIENCE, source.next()).await.expect("in time");
    let said = gone.expect_err("the folder is gone").to_string();
    assert_eq!(said, format!("cannot watch the manifests in {}", path.display()));
    assert!(source.reopen().is_err(), "still gone");

    fs::create_dir(&path).unwrap();
    fs::write(path.join("web.yaml"), WEB).unwrap();
    let update = source.reopen().expect("it is back");
    assert_eq!(names(&update.changes), ["remove Service shop/api"], "only what is no longer written is gone");
    update.changes.into_iter().for_each(|change| drop(model.apply(change)));
    fs::write(path.join("api.yaml"), API).unwrap();
    until(&mut source, &mut model, |model| service(model, "api").is_some()).await;
    assert!(Source::open(&home.path().join("nowhere")).is_err());
}
