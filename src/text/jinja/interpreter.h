#pragma once

#include "text/jinja/ast.h"

namespace m2::text::jinja {

class Scope;

// One render of a program: walks the tree and writes the text. Used once, by one thread. Throws
// Failure.
class Interpreter {
 public:
  Interpreter(const Program& program, const Json& variables, const TemplateLimits& limits);
  ~Interpreter();

  TracedText run();

  // For builtins.
  Budget& budget() { return budget_; }
  Value make_namespace(std::vector<std::pair<std::string, Value>> attributes);

  // For macros: calls `macro`, defined in `scope`.
  Value call_macro(const MacroBody& macro, const std::shared_ptr<Scope>& scope,
                   const Arguments& arguments);

 private:
  enum class Flow { normal, break_loop, continue_loop };

  // Runs statements with a scope of their own, made by the caller.
  Flow run_in(const std::shared_ptr<Scope>& scope, const Block& block);
  Flow run_block(const Block& block);
  Flow run(const Stmt& statement);
  Flow run_if(const IfStmt& node);
  Flow run_for(const ForStmt& node);
  void run_set(const SetStmt& node);
  void run_set_block(const SetBlockStmt& node);
  void run_macro(const MacroStmt& node);
  void run_call_block(const CallBlockStmt& node);
  void run_filter_block(const FilterBlockStmt& node);
  Flow run_with(const WithStmt& node);

  // The text a block writes.
  TracedText capture(const std::shared_ptr<Scope>& scope, const Block& block);
  SequenceRef loop_items(const ForStmt& node);
  void assign(Scope& scope, const Target& target, Value value);
  void assign_row(Scope& scope, const Target& target, const Value& value);
  void assign_attribute(const Target& target, Value value);
  std::shared_ptr<Scope> inner_scope() const;

  CallableRef make_macro(const MacroBody& macro);
  void bind(const MacroBody& macro, const Arguments& arguments);
  void bind_special(const MacroBody& macro, const Arguments& arguments,
                    std::vector<std::pair<std::string, Value>> named);
  void set_standard(const Parameter& parameter);

  Value evaluate(const Expr& node);
  Value evaluate_compound(const Expr& node);
  Value look_up(NameId name) const;
  Value evaluate_slice(const SliceExpr& node);
  Value evaluate_call(const CallExpr& node, const Value* caller = nullptr);
  Value evaluate_filter(const FilterExpr& node);
  Value evaluate_test(const TestExpr& node);
  Value evaluate_concat(const ConcatExpr& node);
  Value evaluate_compare(const CompareExpr& node);
  Value evaluate_conditional(const ConditionalExpr& node);
  Value evaluate_row(Sequence::Kind kind, const std::vector<ExprPtr>& parts);
  Value evaluate_dict(const DictExpr& node);
  Arguments evaluate_arguments(const CallArguments& arguments);

  // The names that statements set by themselves, where the program mentions them.
  struct SpecialNames {
    std::optional<NameId> loop, caller, varargs, kwargs;
  };
  void note_special(std::string_view name, NameId id);

  const Program& program_;
  Budget budget_;
  std::vector<std::optional<Value>> context_;  // by NameId: the caller's variables, the functions
  SpecialNames special_;
  TextWriter* out_ = nullptr;
  std::shared_ptr<Scope> scope_;
  const Value* block_text_ = nullptr;  // what a filter block's first filter works on
  std::vector<std::unique_ptr<Namespace>> namespaces_;
  std::vector<std::shared_ptr<Scope>> kept_;  // scopes that macros were defined in
};

}  // namespace m2::text::jinja
