#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja/value.h"

// The parsed template. Plain data; the interpreter gives it meaning.

namespace m2::text::jinja {

struct Builtin;

// A variable's name as an index into Program::names.
using NameId = uint32_t;

// --- Expressions ---------------------------------------------------------------------------------

struct Expr {
  enum class Kind {
    constant,
    name,
    attribute,
    item,
    slice,
    call,
    filter,
    test,
    negate,
    positive,
    logical_not,
    logical_and,
    logical_or,
    arithmetic,
    concat,
    compare,
    conditional,
    list,
    tuple,
    dict,
  };

  Expr(Kind kind_, int line_) : kind(kind_), line(line_) {}
  virtual ~Expr() = default;

  Kind kind;
  int line;
  int height = 1;  // of the tree below; limited, because it is walked recursively
};
using ExprPtr = std::unique_ptr<Expr>;

// Fixes the kind of a node type.
template <Expr::Kind K>
struct ExprOf : Expr {
  static constexpr Kind kKind = K;
  explicit ExprOf(int line_) : Expr(K, line_) {}
};

struct ConstantExpr : ExprOf<Expr::Kind::constant> {
  using ExprOf::ExprOf;
  Value value;
};

struct NameExpr : ExprOf<Expr::Kind::name> {
  using ExprOf::ExprOf;
  NameId name = 0;
};

struct AttributeExpr : ExprOf<Expr::Kind::attribute> {
  using ExprOf::ExprOf;
  ExprPtr object;
  std::string name;
};

struct ItemExpr : ExprOf<Expr::Kind::item> {
  using ExprOf::ExprOf;
  ExprPtr object, index;
};

struct SliceExpr : ExprOf<Expr::Kind::slice> {
  using ExprOf::ExprOf;
  ExprPtr object, start, stop, step;  // all but the object may be null
};

// The arguments written in a call, a filter or a test.
struct CallArguments {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> named;
  ExprPtr more_positional;  // *args
  ExprPtr more_named;       // **kwargs
};

struct CallExpr : ExprOf<Expr::Kind::call> {
  using ExprOf::ExprOf;
  ExprPtr function;
  CallArguments arguments;
};

// A filter or a test. `builtin` is null if there is none of that name and the expression may never
// be reached (inside of an if), as in the reference.
struct FilterExpr : ExprOf<Expr::Kind::filter> {
  using ExprOf::ExprOf;
  ExprPtr input;  // null in a filter block: the block's text
  std::string name;
  const Builtin* builtin = nullptr;
  CallArguments arguments;
};

struct TestExpr : ExprOf<Expr::Kind::test> {
  using ExprOf::ExprOf;
  ExprPtr input;
  std::string name;
  const Builtin* builtin = nullptr;
  CallArguments arguments;
};

// -x, +x, not x.
template <Expr::Kind K>
struct UnaryExpr : ExprOf<K> {
  using ExprOf<K>::ExprOf;
  ExprPtr operand;
};
using NegateExpr = UnaryExpr<Expr::Kind::negate>;
using PositiveExpr = UnaryExpr<Expr::Kind::positive>;
using NotExpr = UnaryExpr<Expr::Kind::logical_not>;

template <Expr::Kind K>
struct BinaryExpr : ExprOf<K> {
  using ExprOf<K>::ExprOf;
  ExprPtr left, right;
};
using AndExpr = BinaryExpr<Expr::Kind::logical_and>;
using OrExpr = BinaryExpr<Expr::Kind::logical_or>;

enum class Arithmetic { add, subtract, multiply, divide, floor_divide, modulo, power };

struct ArithmeticExpr : BinaryExpr<Expr::Kind::arithmetic> {
  using BinaryExpr::BinaryExpr;
  Arithmetic op = Arithmetic::add;
};

// a ~ b ~ c.
struct ConcatExpr : ExprOf<Expr::Kind::concat> {
  using ExprOf::ExprOf;
  std::vector<ExprPtr> parts;
};

enum class Comparison { eq, ne, lt, le, gt, ge, in, not_in };

// first op a op b ..., chained as in Python.
struct CompareExpr : ExprOf<Expr::Kind::compare> {
  using ExprOf::ExprOf;
  ExprPtr first;
  std::vector<std::pair<Comparison, ExprPtr>> rest;
};

// value if condition else otherwise; `otherwise` may be null.
struct ConditionalExpr : ExprOf<Expr::Kind::conditional> {
  using ExprOf::ExprOf;
  ExprPtr condition, value, otherwise;
};

template <Expr::Kind K>
struct RowExpr : ExprOf<K> {
  using ExprOf<K>::ExprOf;
  std::vector<ExprPtr> items;
};
using ListExpr = RowExpr<Expr::Kind::list>;
using TupleExpr = RowExpr<Expr::Kind::tuple>;

struct DictExpr : ExprOf<Expr::Kind::dict> {
  using ExprOf::ExprOf;
  std::vector<std::pair<ExprPtr, ExprPtr>> entries;
};

// --- Statements ----------------------------------------------------------------------------------

struct Stmt {
  enum class Kind {
    data,
    print,
    set,
    set_block,
    if_else,
    for_loop,
    macro,
    call_block,
    filter_block,
    with,
    scope,
    break_loop,
    continue_loop,
  };

  Stmt(Kind kind_, int line_) : kind(kind_), line(line_) {}
  virtual ~Stmt() = default;

  Kind kind;
  int line;
};
using StmtPtr = std::unique_ptr<Stmt>;
using Block = std::vector<StmtPtr>;

template <Stmt::Kind K>
struct StmtOf : Stmt {
  static constexpr Kind kKind = K;
  explicit StmtOf(int line_) : Stmt(K, line_) {}
};

// What an assignment or a for loop writes to: a name, a namespace's attribute, or a row of targets.
struct Target {
  enum class Kind { name, attribute, row };
  Kind kind = Kind::name;
  NameId name = 0;
  std::string attribute;
  std::vector<Target> row;
};

struct DataStmt : StmtOf<Stmt::Kind::data> {
  using StmtOf::StmtOf;
  std::string text;
};

struct PrintStmt : StmtOf<Stmt::Kind::print> {
  using StmtOf::StmtOf;
  ExprPtr value;
};

struct SetStmt : StmtOf<Stmt::Kind::set> {
  using StmtOf::StmtOf;
  Target target;
  ExprPtr value;
};

struct SetBlockStmt : StmtOf<Stmt::Kind::set_block> {
  using StmtOf::StmtOf;
  Target target;
  ExprPtr filter;  // a chain of FilterExpr over the block's text, or null
  Block body;
};

struct IfStmt : StmtOf<Stmt::Kind::if_else> {
  using StmtOf::StmtOf;
  std::vector<std::pair<ExprPtr, Block>> branches;
  Block otherwise;
};

struct ForStmt : StmtOf<Stmt::Kind::for_loop> {
  using StmtOf::StmtOf;
  Target target;
  ExprPtr items;
  ExprPtr condition;  // or null
  Block body, otherwise;
};

struct Parameter {
  NameId name = 0;
  ExprPtr standard;  // the default, or null
};

// What a macro and the body of a call block have in common.
struct MacroBody {
  std::string name;
  std::vector<Parameter> parameters;
  Block body;
  bool reads_caller = false, reads_varargs = false, reads_kwargs = false;
};

struct MacroStmt : StmtOf<Stmt::Kind::macro> {
  using StmtOf::StmtOf;
  NameId name = 0;
  MacroBody macro;
};

struct CallBlockStmt : StmtOf<Stmt::Kind::call_block> {
  using StmtOf::StmtOf;
  MacroBody caller;
  ExprPtr call;
};

struct FilterBlockStmt : StmtOf<Stmt::Kind::filter_block> {
  using StmtOf::StmtOf;
  ExprPtr filter;
  Block body;
};

struct WithStmt : StmtOf<Stmt::Kind::with> {
  using StmtOf::StmtOf;
  std::vector<std::pair<Target, ExprPtr>> variables;
  Block body;
};

// A block with variables of its own and nothing else: {% generation %}.
struct ScopeStmt : StmtOf<Stmt::Kind::scope> {
  using StmtOf::StmtOf;
  Block body;
};

using BreakStmt = StmtOf<Stmt::Kind::break_loop>;
using ContinueStmt = StmtOf<Stmt::Kind::continue_loop>;

struct Program {
  Block body;
  std::vector<std::string> names;
};

}  // namespace m2::text::jinja
