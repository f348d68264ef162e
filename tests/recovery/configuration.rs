//! What stands in the configuration holds on the command line as well.

use crate::support::Bed;

#[test]
fn window_and_time_zone_of_the_configuration_hold_on_the_command_line() {
    let bed = Bed::new();
    let file = bed.path("config.toml").display().to_string();
    let text = "[tls]\nmode = \"off\"\n[backup]\ntime_zone = \"Europe/Berlin\"\n[pitr]\nwindow = \"30d\"\nbase_backup = \"1 05:00\"\n";
    std::fs::write(&file, text).expect("a configuration");
    bed.ok(&["base-backup"]);
    let seconds = |days: u64| serde_json::Value::from(days * 86_400);
    let pruned = |more: &[&str]| {
        let mut args = vec!["prune", "--dry-run"];
        args.extend(more);
        bed.json(&args)
    };
    assert_eq!(pruned(&["--config", &file])["windowSeconds"], seconds(30));
    assert_eq!(
        pruned(&["--config", &file, "--window", "3"])["windowSeconds"],
        seconds(3)
    );
    assert_eq!(pruned(&[])["windowSeconds"], seconds(7));
    let told = bed.fails(&["plan", "--target", "2026-01-15 14:30:00", "--config", &file]);
    assert!(told.contains("Europe/Berlin"), "{told}");
    let stats = bed.json(&["stats"]);
    assert_eq!(stats["baseBackups"]["count"], 1, "{stats}");
    assert!(stats["archive"]["segments"].as_u64() > Some(0), "{stats}");
    assert!(stats["window"].is_object() && stats["lastDrill"].is_null(), "{stats}");
}
