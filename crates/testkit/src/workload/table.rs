//! All kinds of operations and how often they happen.

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::transactions::{End, Size};
use super::worker::{Effect, Worker};
use super::{Shared, collections, indexes, inserts, kinds, transactions, updates, users};

/// A kind of operation.
pub(super) struct Row {
    /// What [`Stats`](super::Stats) calls it.
    pub(super) kind: &'static str,
    /// How often it happens, relative to the others.
    pub(super) weight: u32,
    needs: Needs,
    pub(super) run: for<'a> fn(&'a mut Worker) -> BoxFuture<'a, anyhow::Result<Effect>>,
}

/// What an operation asks for.
#[derive(Clone, Copy)]
enum Needs {
    /// Servers of this version or a later one.
    Since(u32, u32),
    HugeDocuments,
    BigTransactions,
    TestCommands,
}

const NOTHING: Needs = Needs::Since(0, 0);

impl Row {
    /// Whether it is to be done on these servers.
    pub(super) fn applies(&self, shared: &Shared) -> bool {
        match self.needs {
            Needs::Since(major, minor) => shared.version >= (major, minor),
            Needs::HugeDocuments => shared.options.huge_documents,
            Needs::BigTransactions => shared.options.big_transactions,
            Needs::TestCommands => shared.options.test_commands,
        }
    }
}

/// `kind, weight, needs, function` per line; the function takes a [`Worker`] and what follows its name.
macro_rules! rows {
    ($($kind:literal, $weight:literal, $needs:expr, $function:path $(, $argument:expr)*;)*) => {
        &[$(Row {
            kind: $kind,
            weight: $weight,
            needs: $needs,
            run: |worker| $function(worker $(, $argument)*).boxed(),
        }),*]
    };
}

/// The table.
pub(super) const ROWS: &[Row] = rows! {
    "insert one", 40, NOTHING, inserts::one;
    "insert many", 40, NOTHING, inserts::many;
    "insert huge", 1, Needs::HugeDocuments, inserts::huge;
    "insert duplicate fields", 5, NOTHING, inserts::duplicate_fields;
    "insert odd fields", 5, Needs::Since(5, 0), inserts::odd_fields;
    "delete one", 15, NOTHING, inserts::delete_one;
    "delete many", 5, NOTHING, inserts::delete_many;
    "delete and insert again", 15, NOTHING, inserts::delete_and_insert;
    "findAndModify remove", 5, NOTHING, inserts::find_and_remove;

    "update $set", 12, NOTHING, updates::one, updates::set;
    "update $unset", 6, NOTHING, updates::one, updates::unset;
    "update $inc", 8, NOTHING, updates::one, updates::inc;
    "update $mul", 4, NOTHING, updates::one, updates::mul;
    "update $min", 4, NOTHING, updates::one, updates::min;
    "update $max", 4, NOTHING, updates::one, updates::max;
    "update $rename", 5, NOTHING, updates::one, updates::rename;
    "update $currentDate", 4, NOTHING, updates::one, updates::current_date;
    "update $bit", 4, NOTHING, updates::one, updates::bit;
    "update $push", 10, NOTHING, updates::one, updates::push;
    "update $push with modifiers", 12, NOTHING, updates::one, updates::push_modified;
    "update $pull", 8, NOTHING, updates::one, updates::pull;
    "update $pullAll", 8, NOTHING, updates::one, updates::pull_all;
    "update $pop", 8, NOTHING, updates::one, updates::pop;
    "update $addToSet", 8, NOTHING, updates::one, updates::add_to_set;
    "update positional $", 8, NOTHING, updates::one, updates::positional;
    "update positional $[]", 8, NOTHING, updates::one, updates::all_positional;
    "update positional $[id]", 8, NOTHING, updates::one, updates::filtered_positional;
    "update array elements", 10, NOTHING, updates::one, updates::array_elements;
    "update array grow", 4, NOTHING, updates::one, updates::array_grow;
    "update array shrink", 8, NOTHING, updates::one, updates::array_shrink;
    "update many operators", 10, NOTHING, updates::one, updates::many_operators;
    "update pipeline $set", 8, NOTHING, updates::one, updates::pipeline_set;
    "update pipeline $unset", 4, NOTHING, updates::one, updates::pipeline_unset;
    "update pipeline $replaceWith", 5, NOTHING, updates::one, updates::pipeline_replace;
    "update replacement", 8, NOTHING, updates::one, updates::replacement;
    "update replacement twin _id", 5, NOTHING, updates::replace_by_twin;
    "update upsert", 10, NOTHING, updates::one, updates::upsert;
    "update multi", 4, NOTHING, updates::multi;
    "update bulk ordered", 8, NOTHING, updates::bulk, true;
    "update bulk unordered", 8, NOTHING, updates::bulk, false;
    "findAndModify update", 10, NOTHING, updates::find_and_modify;

    "transaction commit", 8, NOTHING, transactions::begin, Size::Small, End::Commit;
    "transaction abort", 4, NOTHING, transactions::begin, Size::Small, End::Abort;
    "transaction of many", 1, NOTHING, transactions::begin, Size::Many, End::Commit;
    "transaction big", 1, Needs::BigTransactions, transactions::begin, Size::Big, End::Commit;
    "transaction prepare commit", 4, Needs::TestCommands, transactions::begin, Size::Small, End::PrepareCommit;
    "transaction prepare abort", 2, Needs::TestCommands, transactions::begin, Size::Small, End::PrepareAbort;

    "create", 6, NOTHING, collections::create;
    "drop", 3, NOTHING, collections::drop;
    "dropDatabase", 1, NOTHING, collections::drop_database;
    "rename", 8, NOTHING, collections::rename, false;
    "rename dropTarget", 3, NOTHING, collections::rename, true;
    "rename across", 3, NOTHING, collections::rename_across, false;
    "rename across dropTarget", 2, NOTHING, collections::rename_across, true;
    "convertToCapped", 2, Needs::Since(6, 0), collections::convert_to_capped;
    "emptycapped", 2, Needs::TestCommands, collections::empty_capped;
    "collMod validator", 6, NOTHING, collections::modify_validator;
    "collMod hidden", 6, NOTHING, collections::modify_hidden;
    "collMod TTL", 4, NOTHING, collections::modify_ttl;
    "collMod pre-images", 2, NOTHING, collections::modify_pre_images;
    "collMod view", 4, NOTHING, collections::modify_view;
    "collMod capped", 4, Needs::Since(6, 0), collections::modify_capped;
    "collMod time-series", 2, Needs::Since(5, 0), collections::modify_time_series;

    "createIndexes", 20, NOTHING, indexes::create;
    "createIndexes of many", 4, NOTHING, indexes::create_many;
    "dropIndexes", 12, NOTHING, indexes::drop;
    "dropIndexes all", 2, NOTHING, indexes::drop_all;

    "view", 8, NOTHING, kinds::view;
    "time-series insert", 15, Needs::Since(5, 0), kinds::measure;
    "time-series index", 2, Needs::Since(5, 0), kinds::index_measurements;
    "time-series delete", 3, Needs::Since(5, 1), kinds::delete_measurements;
    "capped insert", 15, NOTHING, kinds::log;
    "capped update", 8, NOTHING, kinds::update_log;
    "clustered", 8, Needs::Since(5, 3), kinds::clustered;
    "collated", 12, NOTHING, kinds::collated;
    "collated delete and insert", 10, NOTHING, kinds::collated_again;
    "validated", 8, NOTHING, kinds::validated;

    "createUser", 2, NOTHING, users::create_user;
    "updateUser", 2, NOTHING, users::update_user;
    "dropUser", 2, NOTHING, users::drop_user;
    "createRole", 2, NOTHING, users::create_role;
    "updateRole", 2, NOTHING, users::update_role;
    "dropRole", 1, NOTHING, users::drop_role;
    "system.js", 2, NOTHING, users::stored_function;
    "admin write", 3, NOTHING, users::admin_write;
};
